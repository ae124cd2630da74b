"""Paper 001: training methods that defend, on one budget, under the same attacks."""

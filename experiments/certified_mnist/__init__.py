"""Paper 003 on MNIST: networks trained for a certificate, and every bound on each."""

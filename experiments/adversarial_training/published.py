"""What paper 001 prints, in percent, and what AutoAttack later made of it."""

from __future__ import annotations

YOPO_MNIST = {
    "pgd-5": (99.43, 42.39, 77.04),
    "pgd-10": (99.53, 77.00, 82.00),
    "pgd-40": (99.49, 96.56, 93.52),
    "yopo-5-10": (99.46, 96.27, 93.56),
}
"""Table 1 of YOPO: clean, PGD-40, CW of settings that are not given."""

YOPO_CIFAR10 = {
    "pgd-3": (88.19, 32.51, 54.65),
    "pgd-5": (86.63, 37.78, 57.71),
    "pgd-10": (84.82, 41.61, 58.88),
    "yopo-3-5": (82.14, 38.18, 55.73),
    "yopo-5-3": (83.99, 44.72, 59.77),
}
"""Table 2 of YOPO, PreActResNet-18: clean, PGD-20, CW of settings that are not given."""

MMA_CIFAR10 = {
    "madry 8": (85.14, 27.27, 20.03, 67.73, 46.47, 26.63, 12.33, 4.69, 1.56, 0.62, 0.22),
    "madry 16": (68.86, 28.28, 23.21, 57.99, 46.09, 33.64, 22.73, 13.37, 7.01, 3.32, 1.54),
    "madry 24": (10.90, 9.95, 9.83, 10.60, 10.34, 10.11, 10.00, 9.89, 9.69, 9.34, 8.68),
    "pgdls 8": (85.63, 27.20, 19.90, 67.96, 46.19, 26.19, 12.22, 4.51, 1.48, 0.44, 0.21),
    "pgdls 16": (70.68, 28.44, 23.16, 59.43, 47.00, 33.64, 21.72, 12.66, 6.54, 2.98, 1.31),
    "pgdls 24": (58.36, 26.53, 22.55, 49.05, 41.13, 32.10, 23.76, 15.70, 9.66, 5.86, 3.11),
    "mma 12": (88.59, 26.87, 19.15, 67.96, 43.42, 24.07, 11.45, 4.27, 1.43, 0.45, 0.16),
    "mma 20": (86.56, 28.86, 21.65, 66.92, 46.89, 29.83, 16.55, 8.14, 3.25, 1.17, 0.43),
    "mma 32": (84.36, 29.39, 22.51, 64.82, 47.18, 31.49, 18.91, 10.16, 4.77, 1.97, 0.81),
    "madry ensemble": (87.38, 28.10, 20.69, 64.59, 46.95, 28.88, 15.10, 6.35, 2.35, 0.91, 0.39),
    "pgdls ensemble": (76.73, 29.52, 23.62, 60.52, 48.21, 35.06, 22.14, 12.28, 6.17, 3.14, 1.43),
    "trades": (84.92, 30.46, 23.65, 70.96, 52.92, 33.04, 18.23, 8.34, 3.57, 1.4, 0.69),
}
"""MMA's table: clean, AvgAcc, AvgRobAcc, accuracies at 4 to 32 of 255."""

BILATERAL = {
    "madry 8": (87.3, 56.1, 50.0, 45.8, None, None, None, None),
    "r-fgsm": (89.8, 55.8, 48.0, 42.9, None, None, None, None),
    "r-fgsm-ls": (89.1, 62.0, 54.6, 49.0, None, None, None, None),
    "r-mc": (89.9, 62.6, 48.4, 43.4, None, None, None, None),
    "r-mc-ls": (91.1, 70.6, 59.2, 53.3, None, None, None, None),
    "r-mc-la": (90.7, 69.6, 59.9, 55.3, 52.9, 53.7, 51.9, 51.7),
    "r-mc-la 4": (93.0, None, None, 63.1, 60.1, 61.5, 58.0, 57.6),
    "madry*": (88.0, 57.0, 51.2, 47.6, 47.2, 48.6, 48.1, 48.1),
    "madry-la": (86.8, 63.4, 57.8, 53.2, None, None, None, None),
}
"""Tables 5 and 6 of bilateral training: clean, FGSM, CE-7, CE-20, CE-100, CW-20, CW-100, CW-200.
Of the two tables' means, where they differ, Table 5's; its row "Madry [34]" stands beside PGD-10
training."""

AUTOATTACK = {
    ("mnist", "madry 0.3"): "88.50 (Madry's secret network)",
    ("mnist", "pgd-40"): "88.50 (Madry's secret network)",
    ("mnist", "trades"): "92.81",
    ("mnist", "mma"): "91.40, of 92.59 reported",
    ("cifar10", "madry 8"): "44.04 (Madry's network)",
    ("cifar10", "trades"): "53.08",
    ("cifar10", "mma 32"): "41.44",
    ("cifar10", "yopo-5-3"): "44.83, of 47.98 reported (WRN-34-10)",
    ("cifar10", "r-mc-la 4"): "29.35, of 58.6 reported",
}
"""Accuracies that AutoAttack's authors found on released networks."""

"""Speed of samebits beside plain torch: `python -m benchmarks.kernels`. Each group of cases is a file here."""

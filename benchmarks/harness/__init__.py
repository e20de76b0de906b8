"""What the benchmarks share: places to work in, contenders in processes of their own, rounds, results, the table."""

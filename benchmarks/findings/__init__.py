"""What is made of the benchmarks' JSON: ratios, tables, plots, pages, and a guard against regressions."""

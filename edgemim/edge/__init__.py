"""The wing without torch: artifacts, images, runtimes, benchmarks, tracking."""

"""What the tests, the faults and the benchmarks share: servers, repositories, trees, ways to run programs."""

"""Pure array functions: JAX in, JAX out; no modules, no configs, no files."""

"""Scripts that train, evaluate and use region proposal networks."""

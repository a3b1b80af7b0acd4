"""A detector measured on a labelled split, with format controls beside every figure."""

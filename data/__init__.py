"""Rows, pictures and tokens: what lies between a data file and a batch."""

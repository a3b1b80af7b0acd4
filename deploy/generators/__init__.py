"""Generators of checked-in documents: schemas, AsyncAPI, the page of metrics, the feature figure."""

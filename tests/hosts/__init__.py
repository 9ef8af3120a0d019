"""Hosts of their own: network namespaces, made and removed by the test."""

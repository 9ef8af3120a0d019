"""Deployments: replicas compute what gateways take in. A deployment goes on until somebody ends it."""

"""Classify over the network: see `Client` and `AsyncClient`."""

from serving.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]

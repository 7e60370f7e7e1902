"""Classify over the network with `Client` or `AsyncClient`."""

from serving.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]

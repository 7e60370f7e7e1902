"""Programs for deployments: a demonstration, an edge of replicas, what an image holds."""

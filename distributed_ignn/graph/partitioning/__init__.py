"""From a graph to parts: METIS, Fennel, clusters, and the sharding of the result."""

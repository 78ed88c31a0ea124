"""TODO."""

from __future__ import annotations

from typing import Any

import numpy as np

_MAX_POINTS = 10_000_000  # of a centroid: every image counts, none is sampled away


def kmeans(
    features: np.ndarray, clusters: int, iterations: int, redo: int, seed: int
) -> tuple[np.ndarray, float]:
    """Euclidean k-means by faiss, on a GPU where faiss has one.

    Args:
        features: (N, D) float32, N >= clusters.
        redo: number of starts, of which the best is kept.
        seed: of the starts; the same seed gives the same centres.

    Returns:
        centres (clusters, D) float32, and the sum of squared distances of the features to theirs.
    """
    import faiss

    features = np.ascontiguousarray(features, dtype=np.float32)
    clustering = faiss.Clustering(features.shape[1], clusters)
    clustering.niter, clustering.nredo, clustering.seed = iterations, redo, seed
    clustering.max_points_per_centroid = _MAX_POINTS
    clustering.min_points_per_centroid = 1
    clustering.train(features, _flat_index(features.shape[1]))
    centres = faiss.vector_to_array(clustering.centroids).reshape(clusters, -1)
    stats = clustering.iteration_stats
    objective = min(stats.at(index).obj for index in range(stats.size()))
    return centres.copy(), float(objective)


def assign(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N,) int64: nearest centre of each feature (N, D), Euclidean."""
    index = _flat_index(centres.shape[1])
    index.add(np.ascontiguousarray(centres, dtype=np.float32))
    _, nearest = index.search(np.ascontiguousarray(features, dtype=np.float32), 1)
    return nearest[:, 0]


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows divided by their Euclidean length; the small constant keeps an all-zero row finite."""
    return features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-8)


def _flat_index(width: int) -> Any:
    import faiss

    index = faiss.IndexFlatL2(width)
    if faiss.get_num_gpus() > 0:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    return index

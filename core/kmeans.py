"""k-means and nearest centres of numpy arrays. faiss computes them; it is imported at first use."""

from __future__ import annotations

from typing import Any

import numpy as np

# faiss would draw a sample where a centre has more points than this; here every image counts.
_MAX_POINTS = 10_000_000


def kmeans(
    features: np.ndarray, clusters: int, iterations: int, redo: int, seed: int
) -> tuple[np.ndarray, float]:
    """Find centres that minimise the squared Euclidean distances; on a GPU where faiss sees one.

    Args:
        features: (N, D) float32, N >= clusters. A file that is mapped into memory is read in its
            place, ``iterations * redo`` times, and never copied; beside it, the search needs 20
            bytes a feature. faiss's own sampling (256 features a centre) stays off, so that every
            feature counts and the result does not depend on where the features lie.
        clusters: number of centres.
        iterations: steps of Lloyd's algorithm from each start.
        redo: number of random starts; the result of the best one is returned.
        seed: seed of the random starts. The same seed and features give the same centres.

    Returns:
        The centres, (clusters, D) float32, and the sum over all features of the squared distance
        to the nearest centre.
    """
    import faiss

    features = np.ascontiguousarray(features, dtype=np.float32)
    clustering = faiss.Clustering(features.shape[1], clusters)
    clustering.niter, clustering.nredo, clustering.seed = iterations, redo, seed
    clustering.max_points_per_centroid = _MAX_POINTS
    clustering.min_points_per_centroid = 1
    clustering.train(features, _flat_index(features.shape[1]))
    centres = faiss.vector_to_array(clustering.centroids).reshape(clusters, -1)
    stats: Any = clustering.iteration_stats  # a vector of C++, for which some stubs say list
    objective = min(stats.at(index).obj for index in range(stats.size()))
    return centres.copy(), float(objective)


def assign(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N,) int64: index of the centre that is nearest to each feature (N, D), by Euclidean
    distance.
    """
    index = _flat_index(centres.shape[1])
    index.add(np.ascontiguousarray(centres, dtype=np.float32))
    _, nearest = index.search(np.ascontiguousarray(features, dtype=np.float32), 1)
    return nearest[:, 0]


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Each row of (N, D) divided by its Euclidean length. A small constant is added to the length,
    so that a row of zeros stays finite.
    """
    return features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-8)


def _flat_index(width: int) -> Any:
    import faiss

    index = faiss.IndexFlatL2(width)
    if faiss.get_num_gpus() > 0:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    return index

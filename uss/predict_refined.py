"""``test.py``: label a folder of images, refine the labels with masks, and pack them.

Any number of processes may run this on one ``dump_path``, on one machine or several over a shared
folder: each image is made once, and the archive (``uss.result_archive``) by whoever is there when
the last one is finished.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core import config as core_config
from core.data.layout import open_layout
from core.errors import UserError
from core.pipeline import label_origin
from core.scoring.matching import read_match
from core.work.worklist import Worklist
from refine.label_split import label_split
from refine.mask_sources import mask_source
from refine.one_image import STAGE, Setup
from refine.segmenter import decisive_settings
from refine.settings import Sections
from refine.supervised import SupervisedRefiner
from tools.evaluate.folder import labelled_images
from tools.submission import results
from uss import origins
from uss.config import Config
from uss.networks import segmenter_facts
from uss.pipeline import REFINE, SEGMENTER
from uss.result_archive import Archive, RefinedRun


def run_refined(
    config: Config,
    job: RefinedRun,
    make_refiner: Callable[[Setup, float], Any] = SupervisedRefiner,
) -> None:
    """Predict and refine a folder of images, score it where there are masks, and pack it.

    Run again, it continues: finished images are skipped, and everything that concerns all images is
    computed from the files on disk.

    Args:
        make_refiner: (setup, seconds allowed for an image) -> a context manager, see
            :class:`refine.label_split.AnyRefiner`.

    Raises:
        UserError: anything that keeps the archive from being made; images that are finished stay.
    """
    sections = Sections.of(config)
    core_config.check(sections)
    labelled = results.has_masks(job.data_path, job.mode)
    items = (
        labelled_images(job.data_path, job.mode)
        if labelled
        else open_layout(job.data_path).images(job.mode)
    )
    facts = segmenter_facts(job.pretrained, job.arch, job.num_classes)
    given = read_match(job.match_file, facts.num_classes) if job.match_file else None
    decisive = decisive_settings(job.pretrained, config.predict)
    masks = mask_source(config.masks, job.pretrained_sam).fingerprint
    settings = {**decisive, "masks": masks, "refine": core_config.recorded(config.refine)}
    chain = origins.of_label_maps(REFINE, job.pretrained, job.run, settings)
    work = Worklist(
        job.labels,
        settings,
        also=[job.unrefined],
        keep_stale=job.keep_stale,
        verify=job.verify,
    )
    label_origin.record(work, chain)
    setup = Setup(
        sections,
        SEGMENTER.load,
        job.pretrained,
        job.pretrained_sam,
        job.run.masks(job.mode),
        job.max_pixels,
    )
    with make_refiner(setup, job.image_timeout_s) as refiner:
        outcome = label_split(
            work, items, refiner, STAGE, job.mode, image_timeout_s=job.image_timeout_s
        )
        checkpoint = decisive["checkpoint_sha256"]
        archive = Archive(config, job, facts, checkpoint, chain, given, work, outcome)
        try:
            archive.report_failures()
            archive.finish(refiner)
        except OSError as error:
            raise UserError(
                f"cannot write {job.archive}: {error}; the label maps are kept: mend this and run "
                "the same command again"
            ) from error

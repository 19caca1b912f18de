"""Metrics, one file each: formulas that compare reconstructions with truths. See `eval.metrics.base`.

Called, a formula gives one value an image; in a training loop it is a torchmetrics class over batches and processes:

    from eval.metrics.pixcorr import PIXCORR
    from eval.training import PerImageMetric

    values = PIXCORR(reconstructions, truth)  # (N,) float64

    metric = PerImageMetric(PIXCORR)
    for reconstructions, truth in batches:
        metric.update(reconstructions, truth)
    mean, values = metric.compute(), metric.per_image()  # of all processes
"""

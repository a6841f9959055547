"""The columns that a benchmark has: one for each data set, split and length of training."""

__all__ = ['benchmark_column']

DATASETS = ('cifar10', 'cifar100', 'ImageNet16-120')
SPLITS = ('valid', 'test')
EPOCHS = ('12', '200')


def benchmark_column(column: str) -> tuple[str, str, int]:
    """The data set, the split and the epochs of training that a name of a column says.

    >>> benchmark_column('ImageNet16-120_test_200')
    ('ImageNet16-120', 'test', 200)

    Raises
    ------
    ValueError
        If it is no such name; what of it is unknown is named.
    """
    parts = column.rsplit('_', 2)
    if len(parts) != 3:
        raise ValueError(f"column must be DATASET_SPLIT_EPOCHS such as 'cifar10_test_200', but is {column!r:.200}.")
    choices = {'The data set': DATASETS, 'The split': SPLITS, 'The epochs of training': EPOCHS}
    for (what, known), part in zip(choices.items(), parts, strict=True):
        if part not in known:
            raise ValueError(
                f'{what} of column {column!r:.200} must be one of {", ".join(known)}, but is {part!r:.200}.'
            )
    dataset, split, epochs = parts
    return dataset, split, int(epochs)

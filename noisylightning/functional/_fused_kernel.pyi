def log_likelihood(
    parallel_for: int,
    bfloat16: bool,
    logits: int,
    labels: int,
    columns: int,
    samples: int,
    classes: int,
    log_q: int,
    difference: int,
    factor: float,
    smallest: float,
    /,
) -> float: ...

// The dataset.

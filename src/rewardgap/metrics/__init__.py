"""Floor 2: measures of numbers and strings; no metric sees a model of the study."""

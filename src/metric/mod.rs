//! Measures of a set of images: within-prompt diversity and statistics with standard errors.

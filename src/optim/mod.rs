//! AdamW with readable state and learning-rate schedules.

//! Reward alignment, one method per file: costs, penalties, lean adjoint, matching, truncation.

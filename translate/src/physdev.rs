//! physdev.

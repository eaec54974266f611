//! A platform of plain memory, for tests.

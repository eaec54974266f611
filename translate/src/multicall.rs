//! multicall.

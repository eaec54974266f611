pub mod client;
mod model;
mod protocol;
mod quotas;
mod transactions;
mod watches;

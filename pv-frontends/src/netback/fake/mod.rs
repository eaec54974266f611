//! A guest with a store, a frontend and a network card in memory: for tests, here and of crates
//! above.
#![allow(missing_docs, reason = "they are what they are called")]

pub mod card;
pub mod front;
pub mod packet;
pub mod world;

//! `mark begin` and `mark end`: what runs between them is counted by an emulator that knows how.
#![expect(unsafe_code, reason = "instructions that do nothing")]

#[path = "../marker.rs"]
mod marker;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("begin") => marker::begin(),
        Some("end") => marker::end(),
        other => {
            eprintln!("mark: begin or end, not {other:?}");
            std::process::exit(1);
        }
    }
}

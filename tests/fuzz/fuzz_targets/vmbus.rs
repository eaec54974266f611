//! libFuzzer's way into [`pontoon_fuzz::vmbus`]; without libFuzzer it replays the files it is given.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| pontoon_fuzz::vmbus(data));

#[cfg(not(fuzzing))]
fn main() {
    pontoon_fuzz::replay(pontoon_fuzz::vmbus);
}

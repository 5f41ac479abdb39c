//! Refuses to stand in a release: who could switch this token on could read every key.

#[cfg(all(feature = "memory-token", not(debug_assertions)))]
compile_error!(
    "the feature `memory-token` is for tests: its keys lie in the memory of the process, and no release has it"
);

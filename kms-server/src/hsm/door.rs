//! x
/// x
#[derive(Debug)]
pub struct Hsm;

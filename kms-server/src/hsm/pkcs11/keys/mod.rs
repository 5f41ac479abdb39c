//! Our keys on the token: what each may do, and the proof that it is the one that the database was made
//! with.

pub(super) mod canary;
pub(super) mod finding;
pub(super) mod fresh;
pub(super) mod making;
pub(super) mod template;

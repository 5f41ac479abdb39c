//! The ceremony by which another site's token gets our sealed KEKs, where it needs a session that may make and
//! destroy objects: processes of their own, never the one that serves.

pub(super) mod joining;
pub(super) mod receiving;
pub(super) mod trusting;

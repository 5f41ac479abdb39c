//! The health of this site, as this node sees it. [`Looks`] asks the parts, none of which it trusts to answer;
//! [`Facts`] is what they said; [`SiteHealth`] is the one judgement of that. `Site.GetStatus`, `/readyz` and
//! `kms_ready` show it, and none of them judges.

mod facts;
mod judgement;

pub use facts::{Facts, Looks, StoreFacts, StoreFault, TokenStatusSource};
pub use judgement::{Cause, SiteFault, SiteHealth};

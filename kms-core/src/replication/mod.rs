//! Replication between sites, decided: [`following`] is the side of the site that takes a peer's blocks over, [`serving`]
//! that of the site that has them. What a block becomes stands in [`block`](crate::block), who writes in
//! [`site`](crate::site).

pub mod following;
pub mod serving;

//! The other site as an attacker, or as one that does not answer: its certificate, its card, its running server, and what
//! lies between the two.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kms_client::{ClientConfig, KmsClient};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;

use super::{
    attacks::{hold, over, pause, repeat},
    load::{Outcome, Target, field, framed, number, varint},
};
use crate::{Role, Site, proxy::Proxy};

/// Less than a block's head takes on the wire: its digest and its MAC.
const HEAD_BYTES: usize = 48;

/// The other site.
#[derive(Clone)]
pub(super) struct Peer {
    /// Encoded, as it stands in each request.
    card: Vec<u8>,
    blocks: u32,
    /// Its server.
    pid: u32,
    /// Between its server and the one that is attacked.
    between: Arc<Proxy>,
}

impl Peer {
    /// Of `attacked`; its server is the process `pid`.
    pub(super) async fn of(attacked: &Site, pid: u32, between: Arc<Proxy>) -> Outcome<Self> {
        let client =
            KmsClient::connect(ClientConfig::load(&attacked.client_toml(Role::Dev))?).await?;
        let status = client.site_status().await?;
        let blocks = status.warm_up.blocks_total;
        let card = [
            field(1, status.replication.map(|of| of.peer).unwrap_or_default().as_bytes()),
            field(2, &hex::decode(&status.domain_id)?),
            number(3, blocks as usize),
            field(4, status.version.as_bytes()),
            number(5, 1),
            number(6, usize::try_from(status.epoch)?),
        ];
        Ok(Self { card: card.concat(), blocks, pid, between })
    }

    /// An error unless the server of `target` takes us for the other site and gives all blocks out: else a flood of
    /// refusals would be measured.
    pub(super) async fn is_let_in(&self, target: &Target) -> Outcome<()> {
        let line = target.http2((1 << 24, 1 << 24)).await?;
        let mut begun = line.begin("Replication/FetchBlocks", 0).await?;
        begun.send(self.all_blocks(), true).await?;
        let least = self.blocks as usize * HEAD_BYTES;
        match begun.read().await? {
            read if read < least => Err(format!("{read} bytes came, {least} were expected").into()),
            _ => Ok(()),
        }
    }

    /// A call for all blocks.
    fn all_blocks(&self) -> Bytes {
        let mut blocks = Vec::new();
        for block in 0..self.blocks {
            varint(&mut blocks, block as usize);
        }
        framed(&[field(1, &self.card), field(2, &blocks)].concat())
    }

    /// A challenge for each block.
    fn all_challenges(&self) -> Bytes {
        let challenge =
            |block: u32| field(2, &[number(1, block as usize), field(2, &[7; 32])].concat());
        let challenges: Vec<u8> = (0..self.blocks).flat_map(challenge).collect();
        framed(&[field(1, &self.card), challenges].concat())
    }
}

fn peer(target: &Target) -> Outcome<&Peer> {
    Ok(target.peer.as_ref().ok_or("the server has no peer")?)
}

pub(super) async fn peer_floods(target: &Target, until: Instant) -> Outcome<()> {
    let peer = peer(target)?;
    let (blocks, challenges) = (peer.all_blocks(), peer.all_challenges());
    tokio::try_join!(
        repeat(target, until, "Replication/FetchBlocks", blocks),
        repeat(target, until, "Replication/ProveBlocks", challenges)
    )?;
    Ok(())
}

pub(super) async fn peer_follows(target: &Target, until: Instant) -> Outcome<()> {
    let first = framed(&field(1, &peer(target)?.card));
    let mut followers = JoinSet::new();
    for _ in 0..40 {
        let (target, first) = (target.clone(), first.clone());
        followers.spawn(async move {
            while !over(until) {
                let Ok(line) = target.http2((0, 65_535)).await else { break };
                if let Ok(mut begun) = line.begin("Replication/FollowChanges", 0).await {
                    begun.send(first.clone(), false).await?;
                    hold(begun, until.min(Instant::now() + Duration::from_secs(2))).await;
                }
                pause(50).await;
            }
            Outcome::Ok(())
        });
    }
    while followers.join_next().await.is_some() {}
    Ok(())
}

/// A process that stands still until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn stop(pid: u32) -> Outcome<Self> {
        let pid = Pid::from_raw(i32::try_from(pid)?).ok_or("no process has the number 0")?;
        kill_process(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

pub(super) async fn peer_stalls(target: &Target, until: Instant) -> Outcome<()> {
    hold(Stopped::stop(peer(target)?.pid)?, until).await;
    Ok(())
}

pub(super) async fn peer_half_open(target: &Target, until: Instant) -> Outcome<()> {
    while !over(until) {
        peer(target)?.between.swallow_all();
        pause(500).await;
    }
    Ok(())
}

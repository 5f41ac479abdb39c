//! Two sites by the real programs, one of which writes: killed, promoted, and what the head-end calls.

use std::{fs, time::Duration};

use kms_client::{CounterDeclaration, KmsClient, MeterName, PromoteOptions};
use kms_proto::v1::{ciphering_client::CipheringClient, rotation_client::RotationClient};
use softhsm_tests::{Pair, Role, Running, Setting, Site, SiteOptions, settings::quoted};
use tempfile::TempDir;
use tokio::task::block_in_place;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

use super::common::{
    client, eventually,
    fleet::{add, title},
    programs,
    wire::channel_as,
};

/// An answer is waited for so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Meters of one import, and declarations at a time.
const LOT: usize = 500;
const AT_ONCE: usize = 16;
/// No answer is longer.
const ANSWER_MAX: usize = 64 << 20;

/// Both sites, and who writes.
pub(crate) struct Sites {
    pub(crate) pair: Pair,
    pub(crate) running: [Option<Running>; 2],
    pub(crate) primary: usize,
    clients: [KmsClient; 2],
    people: [Channel; 2],
    head_end: [Channel; 2],
    _dir: TempDir,
}

impl Sites {
    pub(crate) async fn start(meters: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("kms-drill-").tempdir_in("/dev/shm").unwrap();
        let profiles = dir.path().join("profiles");
        fs::create_dir(&profiles).unwrap();
        for (name, word) in [("resets", "RESET"), ("keeps", "KEPT")] {
            let text = format!("description = \"{name}\"\ncounters_on_new_key = \"{word}\"\n");
            fs::write(profiles.join(format!("{name}.toml")), text).unwrap();
        }
        let set = |section, key, value: &str| Setting { section, key, value: value.to_owned() };
        let mut settings = vec![
            set("peer", "heartbeat_ms", "300"),
            set("peer", "write_wait_ms", "2000"),
            set("profiles", "dir", &quoted(&profiles.display().to_string())),
        ];
        if meters > 1_000 {
            settings.push(set("keyring", "arena_mib", "64"));
            settings.push(set("keyring", "allow_unlocked", "true"));
        }
        let options = SiteOptions { settings, ..SiteOptions::default() };
        let (pair, (a, b)) = block_in_place(|| {
            let pair = Pair::make(dir.path(), &programs(), &options).unwrap();
            let running = pair.start().unwrap();
            (pair, running)
        });
        let clients = [client(&pair.a, Role::Dev).await, client(&pair.b, Role::Dev).await];
        let of = |role| [channel_as(&pair.a, role), channel_as(&pair.b, role)];
        Self {
            clients,
            people: of(Role::Dev),
            head_end: of(Role::Rotator),
            pair,
            running: [Some(a), Some(b)],
            primary: 0,
            _dir: dir,
        }
    }

    pub(crate) fn site(&self, at: usize) -> &Site {
        if at == 0 { &self.pair.a } else { &self.pair.b }
    }

    /// The site that writes, for people.
    pub(crate) fn client(&self) -> &KmsClient {
        &self.clients[self.primary]
    }

    pub(crate) fn people(&self) -> RotationClient<Channel> {
        RotationClient::new(self.people[self.primary].clone()).max_decoding_message_size(ANSWER_MAX)
    }

    pub(crate) fn head_end(&self) -> RotationClient<Channel> {
        RotationClient::new(self.head_end[self.primary].clone())
            .max_decoding_message_size(ANSWER_MAX)
    }

    pub(crate) fn ciphering(&self) -> CipheringClient<Channel> {
        CipheringClient::new(self.people[self.primary].clone())
            .max_decoding_message_size(ANSWER_MAX)
    }

    /// Brings meters in, by their lines, and says that their keys were never used to send to them.
    pub(crate) async fn bring_in(&self, lines: &[(u64, String)]) {
        for lot in lines.chunks(LOT) {
            let lines: Vec<String> = lot.iter().map(|(_, line)| line.clone()).collect();
            add(self.client(), &lines).await;
        }
        let declared = lines.iter().map(|(n, _)| self.declare(*n, None));
        let declared = futures_util::stream::iter(declared);
        let mut declared = futures_util::StreamExt::buffer_unordered(declared, AT_ONCE);
        while let Some(()) = declared.next().await {}
    }

    pub(crate) async fn declare(&self, n: u64, last: Option<u32>) {
        let declaration = CounterDeclaration {
            meter: MeterName::Title(title(n)),
            security_setup: 0,
            client: 0,
            broadcast: false,
            last_invocation_counter: last,
        };
        self.client().meters().declare_counter(&declaration).await.unwrap();
    }

    /// The server of the site that writes is gone, at once.
    pub(crate) fn kill(&mut self) {
        let running = self.running[self.primary].take().unwrap();
        block_in_place(|| running.kill_9()).unwrap();
    }

    pub(crate) fn start_again(&mut self, at: usize) {
        let running = block_in_place(|| self.site(at).start()).unwrap();
        self.running[at] = Some(running);
    }

    /// The site that writes is lost, and the other one takes over; the first one comes back and follows.
    pub(crate) async fn fail_over(&mut self) {
        self.until_proved();
        let (lost, other) = (self.primary, 1 - self.primary);
        self.kill();
        self.promote(other).await;
        self.start_again(lost);
    }

    /// This one writes from now on.
    pub(crate) async fn promote(&mut self, at: usize) {
        let client = &self.clients[at];
        eventually("the other site is promoted", || async {
            let Ok(status) = client.site_status().await else { return false };
            let options = PromoteOptions {
                expected_epoch: status.standing.map_or(0, |standing| standing.epoch),
                primary_is_lost: true,
                // Rounds of proofs take longer than a drill has between two failovers.
                although_unproved: true,
                ..PromoteOptions::default()
            };
            client.promote_site(options).await.is_ok()
        })
        .await;
        self.primary = at;
    }

    /// The other site has all that was there a moment ago.
    pub(crate) fn until_proved(&self) {
        block_in_place(|| self.pair.until_proved(self.site(self.primary))).unwrap();
    }

    pub(crate) fn stop(self) {
        for running in self.running.into_iter().flatten() {
            running.stop().unwrap();
        }
    }
}

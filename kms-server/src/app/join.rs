//! `kms-server init --join`, in two steps: `--request` makes this site's own keys and asks to join a key domain,
//! `--bundle` takes the answer and founds this site's part of it.
//!
//! Each step can be done again after it was interrupted. Between the two, the request lies in `data_dir`: the
//! bundle has to answer this very one. It is removed when the site is founded, and a bundle that comes later
//! answers nothing.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    database::{NO_DOMAIN, known_domain, open_store, refuse_a_part},
    fault::Fault,
    founding::{PATIENCE, sign, tell_of},
    handing_on,
    init::{CAN_HAND_ON, pin_from, random},
    join_token::{fits, let_in, own_domain},
    node::replace,
    outside::SystemClock,
    report::Report,
    runtime::runtime,
};
use crate::{
    backup::roll_back,
    config::{Config, Site},
    hsm::{
        HandedKek, HandedKeks, Hsm, OaepHash, RsaKey,
        pkcs11::{self, InitError, JoinKeys, Pkcs11Token, ProbeDepth, Received},
    },
    keyring::founding::take_over_blocks,
    store::{Founding, whole::RollBack},
};
use kms_core::{
    BlockNo, DomainRecord, Epoch,
    audit::Signature,
    enrolment::{
        BadPaper, Fingerprint, Oaep,
        bundle::{EnrolledBlock, Enrolment, SignedEnrolment, WrappedKek},
        request::{JoinRequest, SignedRequest},
    },
    ports::Clock as _,
    site::{
        admission::is_of_former,
        peer::{EnrolledIn, PeerKind, SignedPeer},
        restored::{RestoreMark, RolledBackBy, SignedRestoreMark},
        role::SignedRoleRecord,
    },
};

/// The options of `init --join`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinOptions {
    /// Make the token first; the security officer's PIN is in this file.
    pub create_token: Option<PathBuf>,
    /// It is a second token of the site whose database is there.
    pub same_site: bool,
}

/// Said once a further site has asked.
const NEXT_AT_WRITER: &str =
    "take the file to the site that writes, and read the fingerprint out to its security officer";

/// Said once a second token of this site has asked.
const NEXT_HERE: &str = "with the first token in [hsm]: `kms-server trust-peer`, by this site's security officer; then `ami-tool \
                         site enrol` at this site, whether it writes or not";

/// In `data_dir`, from the request to the end of the ceremony.
const REQUEST: &str = "join-request";

/// The longest file of a bundle, in bytes.
const FILE_LEN_MAX: u64 = 3 * SignedEnrolment::LEN_MAX as u64;

const HAS_DOMAIN: &str = "the database has a key domain already: a site joins once. To begin again, move the \
                          database away, and use a fresh token";

/// Makes the keys that this site makes itself, and writes the request to join into `out`.
pub fn request_to_join(config: Config, options: &JoinOptions, out: &Path) -> Result<Report, Fault> {
    let so_pin = options.create_token.as_deref().map(pin_from).transpose()?;
    match (known_domain(&config)?, options.same_site) {
        (Some(_), false) => return Err(Fault::Store(HAS_DOMAIN.into())),
        (None, true) => return Err(Fault::Store(NO_DOMAIN.into())),
        (Some(_), true) | (None, false) => {}
    }
    let keys = pkcs11::make_join_keys(&config.hsm, so_pin.as_ref()).map_err(of_token)?;
    let handing_on = so_pin.as_ref().map(|so_pin| {
        let tried = handing_on::try_it(&config, so_pin);
        tried.map_or_else(|error| error.to_string(), |()| CAN_HAND_ON.to_owned())
    });
    let kept = config.site.data_dir.join(REQUEST);
    let before = if kept.exists() { Some(read_request(&kept)?) } else { None };
    let signed =
        match before.filter(|before| is_of(&before.request, &keys, (&config, options.same_site))) {
            Some(before) => before,
            None => {
                let request = request_of(&config, &keys, options.same_site)?;
                let signature = pkcs11::sign_as_joining(&config.hsm, &request.message());
                let signed = SignedRequest { signature: signature.map_err(of_token)?, request };
                SignedRequest::decode(&signed.encode()).map_err(|error| not_ours(&error))?;
                keep(&config.site, &kept, &signed)?;
                signed
            }
        };
    let written =
        std::path::absolute(out).and_then(|out| replace(&out, signed.to_file().as_bytes()));
    written.map_err(|error| not_written(out, &error))?;
    let mut lines = vec![
        ("site".to_owned(), signed.request.site.clone()),
        ("token".to_owned(), keys.token_label),
    ];
    lines.extend(keys.keys.into_iter().map(|key| {
        let public = key.fingerprint.map_or(String::new(), |f| format!(", public key {f}"));
        (key.label, format!("id {}{public}", key.id))
    }));
    lines.extend(handing_on.map(|told| ("a further site".to_owned(), told)));
    lines.push(("request".to_owned(), out.display().to_string()));
    lines.push(("fingerprint".to_owned(), signed.fingerprint().to_string()));
    lines.push((
        "next".to_owned(),
        if options.same_site { NEXT_HERE } else { NEXT_AT_WRITER }.to_owned(),
    ));
    Ok(Report { lines })
}

fn request_of(config: &Config, keys: &JoinKeys, same_site: bool) -> Result<JoinRequest, Fault> {
    Ok(JoinRequest {
        site: config.site.name.clone(),
        kind: config.site.kind(),
        signing: keys.signing,
        transport_block: keys.transport_block.to_der(),
        ceremony: keys.ceremony.to_der(),
        nonce: random()?,
        oaep: oaep_of(config),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        at_ms: SystemClock::new().unix_ms(),
        same_site,
    })
}

/// Whether a request that was kept is what this site would ask for now.
fn is_of(request: &JoinRequest, keys: &JoinKeys, (config, same_site): (&Config, bool)) -> bool {
    request.site == config.site.name
        && request.same_site == same_site
        && request.kind == config.site.kind()
        && request.oaep == oaep_of(config)
        && request.signing == keys.signing
        && request.transport_block == keys.transport_block.to_der()
        && request.ceremony == keys.ceremony.to_der()
}

fn keep(site: &Site, kept: &Path, signed: &SignedRequest) -> Result<(), Fault> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(&site.data_dir);
    let kept_now = made.and_then(|()| replace(kept, signed.to_file().as_bytes()));
    kept_now.map_err(|error| not_written(kept, &error))
}

/// A join request out of its file.
pub(super) fn read_request(path: &Path) -> Result<SignedRequest, Fault> {
    let text = read(path, 1 << 20)?;
    SignedRequest::from_file(&text).map_err(|error| of_file(path, &error))
}

/// Takes the bundle in `path`, whose fingerprint somebody at the sending site read out, and founds this site.
pub fn join(config: Config, path: &Path, confirmed: Fingerprint) -> Result<Report, Fault> {
    let kept = config.site.data_dir.join(REQUEST);
    if !kept.exists() {
        return Err(no_request(&config, &kept)?);
    }
    let asked = read_request(&kept)?;
    let runtime = runtime(1)?;
    let store = runtime.block_on(open_store(&config, !asked.request.same_site))?;
    runtime.block_on(refuse_a_part(store.as_ref()))?;
    if !asked.request.same_site && runtime.block_on(store.domain())?.is_some() {
        return Err(Fault::Store(HAS_DOMAIN.into()));
    }
    let text = read(path, FILE_LEN_MAX)?;
    let bundle = SignedEnrolment::from_file(&text).map_err(|error| of_file(path, &error))?;
    if bundle.fingerprint() != confirmed {
        let sentence = format!(
            "the bundle in {} has the fingerprint {}, and {confirmed} was confirmed: nothing of it was used; find out \
             which bundle is the one for this site",
            path.display(),
            bundle.fingerprint()
        );
        return Err(Fault::Setting(sentence.into()));
    }
    let enrolment = bundle.enrolment;
    answers(&enrolment, &asked, &config)
        .map_err(|why| Fault::Setting(format!("{}: {why}", path.display()).into()))?;
    let own = match asked.request.same_site {
        true => Some(runtime.block_on(own_domain(&config, store.as_ref(), &enrolment))?),
        false => None,
    };
    let received = receive(&config, &enrolment, &asked.request)?;
    let site = config.site.clone();
    let report = runtime.block_on(async {
        let done = match &own {
            Some(domain) => let_in(config, store.as_ref(), (domain, &enrolment), received).await?,
            None => {
                let founding = found(config, &enrolment, &received).await?;
                store.create_domain(&founding).await?;
                report(&site, &founding, received, &enrolment)
            }
        };
        store.close().await;
        Ok::<_, Fault>(done)
    })?;
    // What it answered is over: a bundle that comes later answers nothing.
    fs::remove_file(&kept).map_err(|error| not_written(&kept, &error))?;
    Ok(report)
}

fn no_request(config: &Config, kept: &Path) -> Result<Fault, Fault> {
    let mut sentence = format!(
        "there is no {}: this site asks for nothing, or has joined already; begin with \
         `kms-server init --join --request`",
        kept.display()
    );
    if known_domain(config)?.is_some() {
        sentence += ". The database has a key domain: a site joins once, and a second token of it with `--same-site`";
    }
    Ok(Fault::Setting(sentence.into()))
}

/// Whether the bundle is the answer to what this site asked, and fits it.
fn answers(bundle: &Enrolment, asked: &SignedRequest, config: &Config) -> Result<(), String> {
    let request = &asked.request;
    if bundle.request != asked.fingerprint() || bundle.nonce != request.nonce {
        return Err(format!(
            "the bundle answers another request ({}); this site's is {}",
            bundle.request,
            asked.fingerprint()
        ));
    }
    if bundle.recipient != request.site || request.site != config.site.name {
        return Err(format!(
            "the bundle is for the site {:?}, this one is {:?}: correct [site] name, or take the right bundle",
            bundle.recipient, config.site.name
        ));
    }
    if bundle.kind != request.kind || request.kind != config.site.kind() {
        return Err(format!(
            "the bundle makes a site {} of this one: see [site] even and read_only",
            bundle.kind
        ));
    }
    if request.same_site {
        fits(bundle, request)?;
    } else {
        if bundle.sender.kind == bundle.kind
            || bundle.sender.site == bundle.recipient
            || bundle.same_site.is_some()
        {
            return Err("the sender says that it is this very site".to_owned());
        }
        others_fit(bundle)?;
    }
    if bundle.oaep != oaep_of(config) {
        return Err(format!("the bundle is wrapped with {}: see hsm.oaep_hash", bundle.oaep));
    }
    if request.same_site {
        return Ok(());
    }
    let founder_is_sender = bundle.sender.kind.owns(bundle.founded);
    if bundle.founded == Epoch::default() || (!founder_is_sender && bundle.role_records.is_empty())
    {
        return Err("the bundle is of a site that did not write when it made it".to_owned());
    }
    for signed in &bundle.role_records {
        let SignedRoleRecord { record, .. } = signed;
        if record.domain != bundle.sender.domain || !is_vouched_for(bundle, signed) {
            return Err(format!("the role record of epoch {} is not authentic", record.epoch.0));
        }
    }
    Ok(())
}

/// Whether a role record is signed by the site that it belongs to. A site that was rebuilt takes its own on the sender's
/// word: its old key is gone.
fn is_vouched_for(bundle: &Enrolment, signed: &SignedRoleRecord) -> bool {
    if bundle.kind.owns(signed.record.epoch) {
        return true;
    }
    let mut writers = [&bundle.sender].into_iter().chain(&bundle.others);
    writers.any(|peer| peer.kind.owns(signed.record.epoch) && signed.is_signed_by(&peer.keys()))
        || is_of_former(&bundle.others, signed)
}

/// Whether the further sites of the domain leave the sender its place, and this one its own: each name, and each place
/// to write, is there once.
fn others_fit(bundle: &Enrolment) -> Result<(), String> {
    let mut taken = vec![(bundle.recipient.as_str(), bundle.kind)];
    for peer in [&bundle.sender].into_iter().chain(&bundle.others) {
        let is_taken = |(site, kind): &(&str, PeerKind)| {
            *site == peer.site || *kind == peer.kind && peer.kind != PeerKind::Replica
        };
        if peer.domain != bundle.sender.domain || taken.iter().any(is_taken) {
            return Err(format!("the bundle names site {:?} twice, or out of place", peer.site));
        }
        taken.push((peer.site.as_str(), peer.kind));
    }
    match bundle.sender.kind {
        PeerKind::Even | PeerKind::Odd => Ok(()),
        PeerKind::Replica => Err("the sender is a read-only replica".to_owned()),
    }
}

fn receive(config: &Config, enrolment: &Enrolment, asked: &JoinRequest) -> Result<Received, Fault> {
    let handed = |kek: &WrappedKek| HandedKek { id: kek.id, wrapped: kek.wrapped.clone() };
    let keks = HandedKeks {
        meter_kek: handed(&enrolment.keks.meter_kek),
        use_kek: handed(&enrolment.keks.use_kek),
        canaries: enrolment.keks.canaries.clone(),
    };
    let ceremony = RsaKey::from_der(&asked.ceremony);
    let ceremony = ceremony.map_err(|error| Fault::Setting(error.into()))?;
    pkcs11::receive_keks(&config.hsm, &keks, &ceremony).map_err(of_token)
}

/// Everything after the KEKs: the blocks' secrets, sealed for this token, and what this site knows of the other.
async fn found(
    config: Config,
    enrolment: &Enrolment,
    received: &Received,
) -> Result<Founding, Fault> {
    let blocks = enrolment.block_count();
    let blocks = blocks.ok_or_else(|| Fault::Setting("the bundle has no blocks".into()))?;
    let mut domain = DomainRecord {
        domain: enrolment.sender.domain,
        blocks,
        site: config.site.name.clone(),
        epoch: enrolment.founded,
        kind: config.site.kind(),
        canaries: received.canaries.encode(),
        created_ms: SystemClock::new().unix_ms(),
        signature: None,
    };
    let (width, call_timeout) = (config.hsm.sessions_max, config.hsm.call_timeout);
    let token = Pkcs11Token::connect(config.hsm, received.canaries.clone())?;
    if let Some(why) = token.probe(ProbeDepth::Start)?.refusal() {
        return Err(Fault::Token(why.into()));
    }
    let hsm = Hsm::new(Arc::new(token), width, PATIENCE, call_timeout);
    let of_peer: Vec<(BlockNo, &EnrolledBlock)> = enrolment.numbered_blocks().collect();
    let taking = take_over_blocks(&hsm, &domain, &of_peer, tell_of(blocks.get()));
    let blocks = taking.await.map_err(|error| Fault::Token(error.into()))?;
    let heads = blocks.iter().map(|made| (made.head.position, made.head.digest)).collect();
    let table = sign(&hsm, &mut domain, Vec::new(), heads).await?;
    let token = |error| Fault::Token(Box::new(error));
    let mut peers = Vec::new();
    for peer in [&enrolment.sender].into_iter().chain(&enrolment.others) {
        let mut peer = peer.clone();
        // Until the two meet: the bundle may be older than what the sender did, and forgot, since.
        if peer.site == enrolment.sender.site && domain.kind != PeerKind::Replica {
            peer.enrolled_in = peer.enrolled_in.map(EnrolledIn::not_met);
        }
        let signature = hsm.sign(peer.message()).await.map_err(token)?;
        peers.push(SignedPeer { peer, signature });
    }
    let mut role_records = enrolment.role_records.clone();
    for known in &mut role_records {
        // This site's own, from before it lost its token: its new key says what the sender has vouched for.
        if domain.kind.owns(known.record.epoch) {
            known.signature = hsm.sign(known.record.message()).await.map_err(token)?;
        }
    }
    let mut founding = Founding { role_records, peers, ..Founding::new(domain, blocks, table) };
    if enrolment.is_of_rebuilt() && founding.domain.kind != PeerKind::Replica {
        founding.rebuilt = Some(mark_as_rebuilt(&hsm, &founding, &enrolment.sender.site).await?);
    }
    Ok(founding)
}

/// A site that lost its database may have written in epochs that no other site has seen: it takes none before people name
/// the highest one.
async fn mark_as_rebuilt(
    hsm: &Hsm,
    founding: &Founding,
    sender: &str,
) -> Result<(SignedRestoreMark, Signature), Fault> {
    let Founding { domain, .. } = founding;
    let mark = RestoreMark {
        domain: domain.domain,
        site: domain.site.clone(),
        id: random()?,
        by: RolledBackBy::Rebuilt,
        at_ms: domain.created_ms,
        epoch: founding.role().epoch,
        from: format!("rebuilt: site {sender} knew a site {} before", domain.site),
    };
    let rolled_back = roll_back(hsm, domain, mark).await;
    let RollBack { mark, domain } = rolled_back.map_err(|error| Fault::Token(Box::new(error)))?;
    Ok((mark, domain))
}

fn report(site: &Site, founding: &Founding, received: Received, enrolment: &Enrolment) -> Report {
    let mut lines = vec![
        ("site".to_owned(), site.name.clone()),
        ("key domain".to_owned(), hex::encode(founding.domain.domain.0)),
        ("key blocks".to_owned(), founding.domain.blocks.get().to_string()),
        ("this site".to_owned(), founding.domain.kind.to_string()),
        ("other site".to_owned(), format!("{} ({})", enrolment.sender.site, enrolment.sender.kind)),
        ("token".to_owned(), received.token_label),
    ];
    let further = enrolment.others.iter();
    let further =
        further.map(|peer| ("further site".to_owned(), format!("{} ({})", peer.site, peer.kind)));
    lines.splice(5..5, further);
    if founding.rebuilt.is_some() {
        let told = "it was rebuilt: it is promoted with --above-epoch alone".to_owned();
        lines.push(("writing".to_owned(), told));
    }
    lines.extend(received.keys.into_iter().map(|key| {
        let public = key.fingerprint.map_or(String::new(), |f| format!(", public key {f}"));
        (key.label, format!("id {}{public}", key.id))
    }));
    Report { lines }
}

const fn oaep_of(config: &Config) -> Oaep {
    match config.hsm.oaep_hash {
        OaepHash::Sha1 => Oaep::Sha1,
        OaepHash::Sha256 => Oaep::Sha256,
    }
}

fn of_token(error: InitError) -> Fault {
    Fault::Token(error.into())
}

fn not_ours(error: &BadPaper) -> Fault {
    Fault::Setting(format!("the request that was made: {error}; see [site] name").into())
}

fn of_file(path: &Path, error: &BadPaper) -> Fault {
    Fault::Setting(format!("{}: {error}", path.display()).into())
}

fn not_written(path: &Path, error: &io::Error) -> Fault {
    Fault::Setting(format!("cannot write {}: {error}", path.display()).into())
}

fn read(path: &Path, len_max: u64) -> Result<String, Fault> {
    let refused = |why: String| Fault::Setting(format!("{}: {why}", path.display()).into());
    let len = fs::metadata(path).map_err(|error| refused(error.to_string()))?.len();
    if len > len_max {
        return Err(refused(format!("it has {len} bytes, such a file has {len_max} at most")));
    }
    fs::read_to_string(path).map_err(|error| refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may")]

    use super::*;
    use kms_core::{
        DomainId,
        enrolment::bundle::WrappedKeks,
        site::{
            peer::Peer,
            role::{RoleChange, RoleRecord},
        },
    };
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
    };

    struct Signer(EcdsaKeyPair);

    impl Signer {
        fn new() -> Self {
            let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
            Self(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap())
        }

        fn promotion(&self, epoch: u64) -> SignedRoleRecord {
            let record = RoleRecord {
                domain: DomainId([7; 16]),
                site: "x".to_owned(),
                change: RoleChange::Promotion,
                epoch: Epoch(epoch),
                after: Epoch(epoch - 1),
                at_ms: 1,
                heads: Vec::new(),
            };
            let signature = self.0.sign(&SystemRandom::new(), &record.message()).unwrap();
            SignedRoleRecord { record, signature: signature.as_ref().try_into().unwrap() }
        }

        fn peer(&self, site: &str, kind: PeerKind) -> Peer {
            Peer {
                domain: DomainId([7; 16]),
                site: site.to_owned(),
                kind,
                signing: self.0.public_key().as_ref().try_into().unwrap(),
                transport_block: Vec::new(),
                enrolled_ms: 1,
                former: Vec::new(),
                enrolled_in: None,
                tokens: None,
            }
        }
    }

    /// A bundle for a replica, from the even site, which names these others.
    fn bundle(sender: Peer, others: Vec<Peer>) -> Enrolment {
        let kek = || WrappedKek { id: [0; 16], wrapped: Vec::new() };
        Enrolment {
            sender,
            recipient: "east".to_owned(),
            kind: PeerKind::Replica,
            founded: Epoch(2),
            nonce: [0; 32],
            request: Fingerprint([0; 32]),
            oaep: Oaep::Sha1,
            keks: WrappedKeks { meter_kek: kek(), use_kek: kek(), canaries: Vec::new() },
            blocks: Vec::new(),
            role_records: Vec::new(),
            others,
            same_site: None,
            rebuilt: false,
            release: String::new(),
            at_ms: 0,
        }
    }

    #[test]
    fn invariant_7_a_replica_takes_a_role_record_of_the_site_that_its_epoch_belongs_to_alone() {
        let (even, odd, other) = (Signer::new(), Signer::new(), Signer::new());
        let others = vec![odd.peer("south", PeerKind::Odd), other.peer("west", PeerKind::Replica)];
        let bundle = bundle(even.peer("north", PeerKind::Even), others);
        let is_good = |signed: SignedRoleRecord| is_vouched_for(&bundle, &signed);
        assert!(is_good(odd.promotion(3)) && is_good(even.promotion(4)));
        assert!(!is_good(even.promotion(3)) && !is_good(odd.promotion(4)));
        assert!(!is_good(other.promotion(3)) && !is_good(other.promotion(4)));
        // The other one of the two takes its own on the sender's word, and none but its own.
        let to_odd = Enrolment { kind: PeerKind::Odd, ..bundle };
        assert!(is_vouched_for(&to_odd, &other.promotion(3)));
        assert!(!is_vouched_for(&to_odd, &other.promotion(4)));
    }

    #[test]
    fn a_bundle_names_each_site_once_and_gives_nobody_anothers_place() {
        let signer = Signer::new();
        let north = signer.peer("north", PeerKind::Even);
        let fits = |others: Vec<Peer>| others_fit(&bundle(north.clone(), others));
        let (south, west) =
            (signer.peer("south", PeerKind::Odd), signer.peer("west", PeerKind::Replica));
        assert_eq!(fits(vec![south.clone(), west.clone()]), Ok(()));
        for strange in [
            signer.peer("south-2", PeerKind::Odd),
            signer.peer("south", PeerKind::Replica),
            signer.peer("north", PeerKind::Replica),
            signer.peer("east", PeerKind::Replica),
            signer.peer("up", PeerKind::Even),
            Peer { domain: DomainId([8; 16]), ..signer.peer("up", PeerKind::Replica) },
        ] {
            let refused = fits(vec![south.clone(), west.clone(), strange.clone()]);
            assert!(refused.unwrap_err().contains(&strange.site), "{strange:?}");
        }
        assert!(others_fit(&bundle(west, Vec::new())).is_err(), "a replica enrols nobody");
    }
}

//! The summary of a request, in one line, for the person who is to approve it. Never a key.

use std::collections::BTreeMap;

use prost::Message as _;

use super::{
    about::{About, line, read, subject},
    group_summary::about_group,
};
use crate::rpc::access::verb::{Verb, of_campaigns, of_groups};
use kms_core::{enrolment::request::SignedRequest, wire::sealed::HEADER_BYTES_MAX};
use kms_proto::v1::{
    AdmitEpochRequest, BuryDamagedMeterRequest, ClientTitle, CreateMeterRequest, Decision,
    DeclareCounterRequest, DeleteMeterRequest, DemoteRequest, DestroySiteKekRequest,
    EnrolPeerRequest, ForgetRevocationListRequest, GetMeterRequest, ImportLine, ImportRules,
    KeyKind, ListEventsRequest, ListMetersRequest, MeterPolicy, MinimumProtection, NewKey, Parting,
    PromoteRequest, ProtectionLevel, ReadmitMeterRequest, ResolveDivergenceRequest, SealedContents,
    SealedHeader, SealedHeaderBody, SetPolicyRequest, TriageRequest, VerifyChainRequest,
};

/// A line of a list; what is longer is cut off.
const LEN_MAX: usize = 600;

/// The matter of this message. No `_` arm: a new call says here what its second person gets to see.
pub(crate) fn about(verb: Verb, message: &[u8]) -> About {
    within_len(match verb {
        Verb::CreateMeter => read(message, created),
        Verb::SetPolicy => read(message, policy_set),
        Verb::DeclareCounter => read(message, counter_declared),
        Verb::ReadmitMeter => read(message, readmitted),
        Verb::StageKey
        | Verb::NextTransfer
        | Verb::ConfirmKey
        | Verb::RollBackKey
        | Verb::ReviveKey
        | Verb::CompromiseKey
        | Verb::DestroyKey
        | Verb::RestoreKey
        | Verb::SetLegalHold => super::key_summary::about_key(verb, message),
        of_campaigns!() => super::campaign_summary::about_campaign(verb, message),
        of_groups!() => about_group(verb, message),
        Verb::GetMeter => read(message, shown),
        Verb::ListMeters => read(message, listed),
        Verb::DeleteMeter => read(message, deleted),
        Verb::BuryDamagedMeter => read(message, buried),
        Verb::ListEvents => read(message, events),
        Verb::VerifyChain => read(message, chain_verified),
        Verb::Promote => read(message, promoted),
        Verb::Demote => read(message, demoted),
        Verb::EnrolPeer => read(message, enrolled),
        Verb::Triage => read(message, triaged),
        Verb::ListDivergence => line("records that were set aside".into()),
        Verb::ResolveDivergence => read(message, resolved),
        Verb::AdmitEpoch => read(message, admitted),
        Verb::ForgetRevocationList => read(message, forgotten),
        Verb::RotateBlockSecrets => line("rotate the secrets of all blocks".to_owned()),
        Verb::RotateSiteKek | Verb::DestroySiteKek => read(message, kek_changed),
        Verb::GetImportKey
        | Verb::GetStatus
        | Verb::GetReadiness
        | Verb::GetBlockSecretRotation
        | Verb::GetSiteKekRotation
        | Verb::PlanPromotion => About::default(),
        // Read by `import_call`, which knows how far; the others are never for two people, see
        // `Verb::may_need_two_people`.
        Verb::Decrypt | Verb::DecryptBatch | Verb::DecryptStream => About::default(),
        Verb::VerifyMic | Verb::VerifyMicBatch | Verb::VerifyMicStream => About::default(),
        Verb::Encrypt | Verb::EncryptBatch | Verb::Protect => About::default(),
        Verb::BeginHls | Verb::AnswerHlsChallenge | Verb::VerifyHlsAnswer => About::default(),
        Verb::ListBlockHeads | Verb::FetchBlocks | Verb::FollowChanges => About::default(),
        Verb::ProveBlocks | Verb::ExchangeMarks | Verb::ListFloors => About::default(),
        Verb::ImportMeters
        | Verb::ListRoleRecords
        | Verb::ReportDivergence
        | Verb::HandEvidence
        | Verb::ShowHeadTables
        | Verb::FetchAuditEvents
        | Verb::FollowEvents
        | Verb::SyncNow
        | Verb::ListApprovals
        | Verb::ApproveCall
        | Verb::AskAhead
        | Verb::Health
        | Verb::Reflection => About::default(),
    })
}

/// Cut off where a list's line ends: `{:?}` has escaped what could break it; titles are hexadecimal.
fn within_len(mut about: About) -> About {
    about.line = about.line.chars().take(LEN_MAX).collect();
    about
}

fn policy_set(SetPolicyRequest { meter_id, policy: new }: SetPolicyRequest) -> About {
    let line = format!("meter {meter_id:?}, {}", policy(new.as_ref()));
    About { line, subject: subject(&meter_id, &[]) }
}

fn deleted(DeleteMeterRequest { meter_id }: DeleteMeterRequest) -> About {
    About { line: format!("meter {meter_id:?}"), subject: subject(&meter_id, &[]) }
}

fn chain_verified(VerifyChainRequest { node_id, site }: VerifyChainRequest) -> About {
    line(format!("node {}{}", hex::encode(&node_id), of_site(&site)))
}

/// Whose chains are read, if they are not this site's.
fn of_site(site: &str) -> String {
    if site.is_empty() { String::new() } else { format!(" of site {site:?}") }
}

fn events(ListEventsRequest { after, site, .. }: ListEventsRequest) -> About {
    line(format!("events after {after}{}", of_site(&site)))
}

fn demoted(DemoteRequest { expected_epoch }: DemoteRequest) -> About {
    line(format!("demote this site in epoch {expected_epoch}"))
}

fn admitted(AdmitEpochRequest { epoch }: AdmitEpochRequest) -> About {
    line(format!("take in epoch {epoch} of the other site, more than one step ahead"))
}

fn forgotten(request: ForgetRevocationListRequest) -> About {
    let ForgetRevocationListRequest { authority, number, from_number } = request;
    let [authority, number, from] = [authority, number, from_number].map(hex::encode);
    line(format!(
        "forget that revocation list {number} was used: lists from number {from} on count again, whatever newer ones \
         revoked; authority {authority}"
    ))
}

/// The request for a new one says nothing.
fn kek_changed(DestroySiteKekRequest { kek_id }: DestroySiteKekRequest) -> About {
    let id = hex::encode(kek_id);
    line(match id.as_str() {
        "" => "make a new site KEK and use it".to_owned(),
        id => format!(
            "destroy former site KEK {id}: backups from before its rotation open with nothing else"
        ),
    })
}

fn readmitted(ReadmitMeterRequest { meter_id, system_title }: ReadmitMeterRequest) -> About {
    let line = format!("deleted meter {meter_id:?}, title {}", hex::encode(&system_title));
    About { line, subject: subject(&meter_id, &system_title) }
}

fn shown(GetMeterRequest { meter_id, system_title }: GetMeterRequest) -> About {
    let line = format!("meter {meter_id:?}, title {}", hex::encode(&system_title));
    About { line, subject: subject(&meter_id, &system_title) }
}

fn created(CreateMeterRequest { meter, rules }: CreateMeterRequest) -> About {
    let meter = meter.unwrap_or_default();
    let title = hex::encode(&meter.system_title);
    let (keys, policy) = (keys(&meter.keys), policy(meter.policy.as_ref()));
    let rules = said(&rules.unwrap_or_default());
    let id = &meter.meter_id;
    let line = format!("meter {id:?}, title {title}, {keys}, {policy}, {rules}");
    About { line, subject: subject(id, &meter.system_title) }
}

fn listed(ListMetersRequest { after, .. }: ListMetersRequest) -> About {
    line(format!("meters after {after:?}"))
}

fn triaged(request: TriageRequest) -> About {
    let TriageRequest { meter_id, system_title, frames, .. } = request;
    let (count, title) = (frames.len(), hex::encode(&system_title));
    let line = format!("triage of {count} frames of meter {meter_id:?}, title {title}");
    About { line, subject: subject(&meter_id, &system_title) }
}

fn buried(BuryDamagedMeterRequest { system_title, block }: BuryDamagedMeterRequest) -> About {
    let (title, own) = (hex::encode(&system_title), "its own block".to_owned());
    let place = block.map_or(own, |block| format!("block {block}"));
    let line = format!("bury the damaged record of title {title} in {place}");
    About { line, subject: subject("", &system_title) }
}

fn counter_declared(request: DeclareCounterRequest) -> About {
    let DeclareCounterRequest { meter_id, system_title, security_setup, client, broadcast, .. } =
        &request;
    let title = hex::encode(system_title);
    let key = if *broadcast { "broadcast key" } else { "own key" };
    let last = request.last_invocation_counter;
    let last =
        last.map_or("was never used".to_owned(), |last| format!("was used up to {last:08X}"));
    let line = format!(
        "meter {meter_id:?}, title {title}: its {key} of setup {security_setup} {last} by client {client}"
    );
    About { line, subject: subject(meter_id, system_title) }
}

fn promoted(request: PromoteRequest) -> About {
    let PromoteRequest { expected_epoch, primary_is_lost, above_epoch, although_unproved } =
        request;
    let unproved = if although_unproved { ", although it is not proved to be ready" } else { "" };
    let lost = if primary_is_lost { ", its primary being lost" } else { "" };
    let above = above_epoch.map_or(String::new(), |above| {
        let burnt = above.saturating_sub(expected_epoch).saturating_add(1);
        let left = 256_u64.saturating_sub(burnt);
        format!(
            ", above epoch {above}, which takes {burnt} of every key's 256 counter epochs and leaves at most {left}"
        )
    });
    line(format!("promote this site in epoch {expected_epoch}{lost}{above}{unproved}"))
}

fn enrolled(EnrolPeerRequest { request, fingerprint, replace }: EnrolPeerRequest) -> About {
    let site = SignedRequest::decode(&request).map(|signed| signed.request);
    let site = site.map_or("that can't be read".to_owned(), |request| {
        format!("of site {:?}, {}", request.site, request.what())
    });
    let anew = if replace { ", in the place of its former keys" } else { "" };
    let fingerprint = hex::encode(&fingerprint);
    line(format!("enrol: join request {site}{anew}, fingerprint {fingerprint}"))
}

fn resolved(request: ResolveDivergenceRequest) -> About {
    let ResolveDivergenceRequest { decision, id, rule, all: _ } = request;
    let decision = Decision::try_from(decision).map_or("unknown", |it| it.as_str_name());
    let which = match (id.as_ref(), Parting::try_from(rule)) {
        ([], Ok(Parting::Unspecified)) => "all records that were set aside".to_owned(),
        ([], Ok(rule)) => format!("records that were set aside and are {}", rule.as_str_name()),
        ([], Err(_)) => "records that were set aside, by a rule that there is not".to_owned(),
        (id, _) => format!("the record {} that was set aside", hex::encode(id)),
    };
    line(format!("{decision}: {which}"))
}

/// The matter of a sealed file as it says itself, and the rules it is to come in by.
pub(crate) fn of_header(rules: &ImportRules, header: &SealedHeader) -> About {
    let is_bounded = header.body.len() <= HEADER_BYTES_MAX;
    let read = is_bounded.then(|| SealedHeaderBody::decode(header.body.clone()).ok()).flatten();
    let Some(header) = read else {
        return line("a sealed file whose header can't be read".to_owned());
    };
    let SealedHeaderBody { file_id, signer, count, sealed_ms, contents, .. } = header;
    let contents = sealed_contents(contents.as_ref());
    let (file_id, at, rules) = (hex::encode(&file_id), utc(sealed_ms), said(rules));
    let mut about = line(format!(
        "sealed file {file_id} of signer {signer:?}, sealed at {at}, {count} lines, {rules}, {contents}"
    ));
    // The policies come last, and a list that is cut says so.
    if about.line.chars().count() > LEN_MAX {
        about.line = about.line.chars().take(LEN_MAX - 1).chain(['…']).collect();
    }
    about
}

/// What a sealed file holds, as its header says; the service takes nothing else of it.
fn sealed_contents(contents: Option<&SealedContents>) -> String {
    let Some(SealedContents { keys: kinds, policies, more_policies }) = contents else {
        return "which keys and policies is not said (an older release sealed it)".to_owned();
    };
    let counts = kinds.iter().map(|it| (kind_of(it.kind, it.protection), it.count));
    let others = more_policies.then(|| "MORE POLICIES THAN THESE".to_owned());
    let with: Vec<String> =
        others.into_iter().chain(policies.iter().map(|it| policy(Some(it)))).collect();
    let with = if with.is_empty() { "no policies".to_owned() } else { with.join(" / ") };
    format!("{}, {with}", counted(counts.collect()))
}

/// The matter of lines in clear, and the rules they are to come in by.
pub(crate) fn of_lines(rules: &ImportRules, lines: &[ImportLine]) -> About {
    let meters = || lines.iter().filter_map(|line| line.meter.as_ref());
    let all: Vec<NewKey> =
        meters().flat_map(|meter| meter.keys.iter()).map(without_value).collect();
    let mut policies: Vec<String> = meters()
        .filter(|meter| meter.policy.is_some())
        .map(|meter| policy(meter.policy.as_ref()))
        .collect();
    policies.sort();
    policies.dedup();
    let named: Vec<&str> = meters().take(3).map(|meter| meter.meter_id.as_str()).collect();
    let with = if policies.is_empty() { "no policies".to_owned() } else { policies.join(" / ") };
    let (count, keys, rules) = (lines.len(), keys(&all), said(rules));
    let more = if count > named.len() { " …" } else { "" };
    let mut about =
        line(format!("{count} lines in clear, meters {named:?}{more}, {keys}, {with}, {rules}"));
    about.line = about.line.chars().take(LEN_MAX).collect();
    about
}

fn without_value(key: &NewKey) -> NewKey {
    let NewKey { kind, security_setup, protection, .. } = key;
    NewKey {
        kind: *kind,
        security_setup: *security_setup,
        protection: *protection,
        ..NewKey::default()
    }
}

/// Numbers of keys, by kind and protection: never a key.
fn keys(keys: &[NewKey]) -> String {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for key in keys {
        *counts.entry(kind_of(key.kind, key.protection)).or_default() += 1;
    }
    counted(counts)
}

fn kind_of(kind: i32, protection: i32) -> String {
    let kind = KeyKind::try_from(kind).map_or("unknown", |kind| kind.as_str_name());
    let protection = match ProtectionLevel::try_from(protection) {
        Ok(ProtectionLevel::Unspecified) => String::new(),
        Ok(level) => format!("/{}", level.as_str_name()),
        Err(_) => "/unknown".to_owned(),
    };
    format!("{kind}{protection}")
}

fn counted(counts: BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return "no keys".to_owned();
    }
    let counts: Vec<String> = counts.into_iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    format!("keys: {}", counts.join(" + "))
}

/// A policy in its own words: what it demands, then each thing that it allows or says.
fn policy(policy: Option<&MeterPolicy>) -> String {
    let Some(policy) = policy else { return "no policy".to_owned() };
    let MeterPolicy {
        minimum_protection,
        allow_encryption_only,
        allow_withheld_authentication_key,
        default_system_title,
        client_title,
        general_ciphering_omit_header,
        profile,
        client_titles,
        allow_compromised,
    } = policy;
    let minimum = match MinimumProtection::try_from(*minimum_protection) {
        Ok(MinimumProtection::Unspecified) => MinimumProtection::Authenticated.as_str_name(),
        Ok(minimum) => minimum.as_str_name(),
        Err(_) => "unknown",
    };
    let mut words = vec![format!("policy {minimum}")];
    let flags = [
        (*allow_encryption_only, "allow_encryption_only"),
        (*allow_withheld_authentication_key, "allow_withheld_authentication_key"),
        (*general_ciphering_omit_header, "general_ciphering_omit_header"),
        (*allow_compromised, "allow_compromised"),
    ];
    words.extend(flags.into_iter().filter(|(on, _)| *on).map(|(_, word)| word.to_owned()));
    for (name, title) in
        [("default_system_title", default_system_title), ("client_title", client_title)]
    {
        if !title.is_empty() {
            words.push(format!("{name} {}", hex::encode(title)));
        }
    }
    if !profile.is_empty() {
        words.push(format!("profile {profile:?}"));
    }
    words.extend(client_titles.iter().map(|entry| {
        let ClientTitle { security_setup, client, system_title } = entry;
        format!("client {client} of setup {security_setup} {}", hex::encode(system_title))
    }));
    words.join(" + ")
}

fn said(rules: &ImportRules) -> String {
    let ImportRules { allow_test_keys, add_versions, dry_run, change_policy } = rules;
    let rules = [
        (*allow_test_keys, "allow_test_keys"),
        (*add_versions, "add_versions"),
        (*change_policy, "change_policy"),
        (*dry_run, "dry_run"),
    ];
    let on: Vec<&str> = rules.into_iter().filter(|(on, _)| *on).map(|(_, word)| word).collect();
    if on.is_empty() { "no rules".to_owned() } else { format!("rules: {}", on.join(" + ")) }
}

/// A moment as people write it, in UTC, to the second.
fn utc(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1_000 % 86_400);
    // The calendar repeats every 400 years, counted here from a first of March.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) =
        (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use kms_proto::v1::SealedKeys;

    use super::*;

    #[test]
    fn a_summary_is_one_line_of_bounded_length() {
        let of = |meter_id: String| {
            about(Verb::DeleteMeter, &DeleteMeterRequest { meter_id }.encode_to_vec()).line
        };
        assert_eq!(of("m-7".into()), "meter \"m-7\"");
        assert_eq!(of("a\nb".into()), "meter \"a\\nb\"");
        assert_eq!(of("x".repeat(1_000)).len(), LEN_MAX);
        assert_eq!(about(Verb::DeleteMeter, b"\xFF").line, "a request that can't be read");
    }

    #[test]
    fn a_moment_is_shown_as_people_write_it() {
        for (ms, due) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_767_225_599_999, "2025-12-31T23:59:59Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(ms), due);
        }
    }

    #[test]
    fn a_summary_shows_policies_rules_kinds_and_protections() {
        let weak = MeterPolicy { allow_encryption_only: true, ..MeterPolicy::default() };
        let set = SetPolicyRequest { meter_id: "m".into(), policy: Some(weak.clone()) };
        assert_eq!(
            about(Verb::SetPolicy, &set.encode_to_vec()).line,
            "meter \"m\", policy AUTHENTICATED + allow_encryption_only"
        );
        let entry =
            ClientTitle { security_setup: 1, client: 16, system_title: vec![0xAB; 8].into() };
        let named = MeterPolicy {
            profile: "gbcs".into(),
            client_titles: vec![entry],
            ..MeterPolicy::default()
        };
        let set = SetPolicyRequest { meter_id: "m".into(), policy: Some(named) };
        assert_eq!(
            about(Verb::SetPolicy, &set.encode_to_vec()).line,
            "meter \"m\", policy AUTHENTICATED + profile \"gbcs\" + client 16 of setup 1 abababababababab"
        );
        let key = |kind: KeyKind, protection: ProtectionLevel| NewKey {
            kind: kind as i32,
            protection: protection as i32,
            ..NewKey::default()
        };
        let meter = kms_proto::v1::NewMeter {
            meter_id: "m".into(),
            keys: vec![
                key(KeyKind::Guek, ProtectionLevel::Hsm),
                key(KeyKind::Gak, ProtectionLevel::Unspecified),
            ],
            policy: Some(weak.clone()),
            ..Default::default()
        };
        let rules = ImportRules { add_versions: true, change_policy: true, ..Default::default() };
        let lines = [1, 2].map(|line| ImportLine { line, meter: Some(meter.clone()) });
        assert_eq!(
            of_lines(&rules, &lines).line,
            "2 lines in clear, meters [\"m\", \"m\"], keys: 2 GAK + 2 GUEK/HSM, \
             policy AUTHENTICATED + allow_encryption_only, rules: add_versions + change_policy"
        );
        let header = SealedHeaderBody {
            file_id: vec![0xAB; 16].into(),
            signer: "maker".into(),
            count: 9,
            sealed_ms: 1_000,
            ..Default::default()
        };
        let said = |contents: Option<SealedContents>| {
            let body = SealedHeaderBody { contents, ..header.clone() }.encode_to_vec().into();
            let header = SealedHeader { body, ..Default::default() };
            of_header(&ImportRules::default(), &header).line
        };
        let file = |held: &str| {
            let id = "ab".repeat(16);
            format!(
                "sealed file {id} of signer \"maker\", sealed at 1970-01-01T00:00:01Z, 9 lines, no rules, {held}"
            )
        };
        assert_eq!(
            said(None),
            file("which keys and policies is not said (an older release sealed it)")
        );
        let of = |kind: KeyKind, protection: ProtectionLevel, count| SealedKeys {
            kind: kind as i32,
            protection: protection as i32,
            count,
        };
        let contents = SealedContents {
            keys: vec![
                of(KeyKind::Guek, ProtectionLevel::Unspecified, 9),
                of(KeyKind::Kek, ProtectionLevel::Hsm, 3),
            ],
            policies: vec![weak.clone()],
            more_policies: true,
        };
        assert_eq!(
            said(Some(contents)),
            file(
                "keys: 9 GUEK + 3 KEK/HSM, MORE POLICIES THAN THESE / policy AUTHENTICATED + allow_encryption_only"
            )
        );
        let long = SealedHeaderBody { signer: "x".repeat(17 << 10), ..header.clone() };
        let long = SealedHeader { body: long.encode_to_vec().into(), ..Default::default() };
        let line = of_header(&ImportRules::default(), &long).line;
        assert_eq!(line, "a sealed file whose header can't be read");
        let readmit = ReadmitMeterRequest { meter_id: "m".into(), system_title: vec![1; 8].into() };
        assert_eq!(
            about(Verb::ReadmitMeter, &readmit.encode_to_vec()).line,
            "deleted meter \"m\", title 0101010101010101"
        );
    }

    #[test]
    fn invariant_1_a_summary_shows_no_key() {
        use kms_proto::v1::NewMeter;
        let key = NewKey { clear_value: b"SECRETKEY1234567".to_vec().into(), ..NewKey::default() };
        let meter = NewMeter { meter_id: "m".into(), keys: vec![key], ..NewMeter::default() };
        let request = CreateMeterRequest { meter: Some(meter), rules: None }.encode_to_vec();
        assert!(request.windows(9).any(|bytes| bytes == b"SECRETKEY"));
        let line = about(Verb::CreateMeter, &request).line;
        assert!(!line.contains("SECRET") && !line.contains(&hex::encode("SECRET")), "{line}");
    }
}

//! `rotate start`: one call, or one for each 10,000 meters of a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use kms_client::{
    CallError, Campaign, CampaignStart, CampaignStarted, KmsClient, LeftOut, MeterId,
    MeterSelection, Replicated, Rotation,
};
use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::rotate_args::Start;
use crate::rotate_text::summary;
use crate::text::{say, say_json, say_unreplicated};

/// Meters that are named one by one; with `--json` all that the service names.
const SHOWN_MAX: usize = 50;
/// After the answer was lost.
const START_LOST: &str = "`rotate status NAME` says whether it runs; where it is FILLING or unknown, run the same command again";

/// What all calls of one start came to.
#[derive(Debug, Serialize)]
struct Begun {
    dry_run: bool,
    /// As it stands behind the last call; of a dry run, of that call alone.
    campaign: Campaign,
    /// Meters that came in, or would, by label; known of a dry run alone.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    by_label: BTreeMap<String, u64>,
    added: u64,
    already: u64,
    left_out: Vec<LeftOut>,
    left_out_total: u64,
    replicated: Replicated,
}

pub(crate) async fn start(client: &KmsClient, what: Start, json: bool) -> Result<Exit, Failure> {
    let mut selections = match &what.meters {
        Some(file) => in_lots(read_ids(file)?)?,
        None => vec![what.selection()],
    };
    let rotation = client.rotation();
    let before = match what.dry_run {
        true => members_before(&rotation, &what.name).await?,
        false => BTreeMap::new(),
    };
    let (calls, mut begun) = (selections.len(), None::<Begun>);
    for (number, selection) in selections.drain(..).enumerate() {
        let start = CampaignStart {
            name: what.name.clone(),
            policy: what.policy(),
            selection,
            dry_run: what.dry_run,
            more: number + 1 < calls,
        };
        let done = begun.as_ref().map_or(0, |begun| begun.added + begun.already);
        let started = rotation.start_campaign(&start).await.map_err(|error| lost(error, done))?;
        begun = Some(with(begun, started, what.dry_run, &before));
    }
    let begun = begun.ok_or_else(|| Failure::usage("no meter was named"))?;
    if json {
        say_json(&begun)?
    } else {
        tell(&begun)?
    }
    Ok(Exit::good_if(begun.left_out_total == 0))
}

fn lost(error: CallError, done: u64) -> Failure {
    let is_unknown = matches!(error, CallError::OutcomeUnknown { .. });
    let failure = Failure::from(error);
    let failure = if is_unknown { failure.with_next(START_LOST) } else { failure };
    match done {
        0 => failure,
        done => failure.after(format!("{done} meters are in; the same command goes on")),
    }
}

/// Members of the campaign that is filling already, by label: a dry run counts them with those that would come in.
async fn members_before(rotation: &Rotation, name: &str) -> Result<BTreeMap<String, u64>, Failure> {
    match rotation.campaign(name).await {
        Ok(campaign) => Ok(by_label(&campaign)),
        Err(CallError::Refused { code, .. }) if code == "NO_SUCH_CAMPAIGN" => Ok(BTreeMap::new()),
        Err(error) => Err(error.into()),
    }
}

fn by_label(campaign: &Campaign) -> BTreeMap<String, u64> {
    campaign.labels.iter().map(|it| (it.label.clone(), it.progress.members)).collect()
}

/// What all calls came to, with one more of them.
fn with(
    sum: Option<Begun>,
    started: CampaignStarted,
    dry_run: bool,
    before: &BTreeMap<String, u64>,
) -> Begun {
    let CampaignStarted { campaign, added, already, left_out, left_out_total, replicated } =
        started;
    let mut sum = sum.unwrap_or_else(|| Begun {
        dry_run,
        campaign: campaign.clone(),
        by_label: BTreeMap::new(),
        added: 0,
        already: 0,
        left_out: Vec::new(),
        left_out_total: 0,
        replicated,
    });
    if dry_run {
        for (label, members) in by_label(&campaign) {
            let new = members.saturating_sub(before.get(&label).copied().unwrap_or_default());
            if new > 0 {
                *sum.by_label.entry(label).or_default() += new;
            }
        }
    }
    sum.campaign = campaign;
    sum.added += added;
    sum.already += already;
    sum.left_out.extend(left_out);
    sum.left_out_total += left_out_total;
    if replicated == Replicated::Unreplicated {
        sum.replicated = replicated;
    }
    sum
}

fn tell(begun: &Begun) -> Result<(), Failure> {
    for line in lines(begun) {
        say(&line)?;
    }
    say_unreplicated(begun.replicated)
}

fn lines(begun: &Begun) -> Vec<String> {
    let Begun { dry_run, campaign, added, already, left_out, left_out_total, .. } = begun;
    let mut lines = Vec::new();
    let would = if *dry_run { "would come in" } else { "came in" };
    let already = if *already > 0 { format!(", {already} were in before") } else { String::new() };
    lines.push(format!("{added} meters {would}{already}, {left_out_total} are left out"));
    lines.extend(begun.by_label.iter().map(|(label, count)| format!("label {label}  {count}")));
    let mut by_code: BTreeMap<&str, u64> = BTreeMap::new();
    left_out.iter().for_each(|it| *by_code.entry(&it.code).or_default() += 1);
    if by_code.len() > 1 {
        lines.extend(by_code.iter().map(|(code, count)| format!("left out  {code}  {count}")));
    }
    let named = left_out.iter().take(SHOWN_MAX);
    lines.extend(named.map(|it| format!("left out  {}  {}: {}", it.meter_id, it.code, it.reason)));
    let unnamed = left_out_total.saturating_sub(left_out.len().min(SHOWN_MAX) as u64);
    if unnamed > 0 {
        lines.push(format!("… and {unnamed} more are left out"));
    }
    if *dry_run {
        lines.push("nothing was begun".to_owned());
        return lines;
    }
    lines.push(summary(campaign));
    lines.push(format!(
        "next: the HES takes its meters (TakeWork); `rotate watch {}` shows how far it is",
        campaign.name
    ));
    lines
}

/// The ids of a file, each once, in its order.
fn read_ids(path: &Path) -> Result<Vec<MeterId>, Failure> {
    let failed = |error: io::Error| Failure::files(format!("{}: {error}", path.display()));
    let reader: Box<dyn BufRead> = match path.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => Box::new(BufReader::new(File::open(path).map_err(failed)?)),
    };
    let (mut ids, mut known) = (Vec::new(), std::collections::BTreeSet::new());
    for (number, line) in (1_u64..).zip(reader.lines()) {
        let line = line.map_err(failed)?;
        let word = line.trim_start_matches('\u{FEFF}').trim();
        if word.is_empty() {
            continue;
        }
        let id = MeterId::new(word).map_err(|error| {
            Failure::files(format!("{}, line {number}: {error}", path.display()))
        })?;
        if known.insert(id.clone()) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// As many in each as one call may name. No ids are no selection: that would be all meters.
fn in_lots(ids: Vec<MeterId>) -> Result<Vec<MeterSelection>, Failure> {
    if ids.is_empty() {
        return Err(Failure::files("the file names no meter"));
    }
    let lots = ids.chunks(MeterSelection::IDS_MAX);
    let lot = |ids: &[MeterId]| MeterSelection { meter_ids: ids.to_vec(), ..Default::default() };
    Ok(lots.map(lot).collect())
}

#[cfg(test)]
mod tests {
    use kms_client::{CampaignLabel, CampaignStatus};

    use super::*;
    use crate::rotate_text::tests::spring;

    fn started(members: u64) -> CampaignStarted {
        let mut campaign = spring(CampaignStatus::Filling);
        let CampaignLabel { progress, .. } = &mut campaign.labels[0];
        progress.members = members;
        let left = |id: &str| LeftOut {
            meter_id: id.into(),
            code: format!("CODE_{id}"),
            reason: "why".into(),
        };
        let left_out = vec![left("a"), left("b")];
        CampaignStarted {
            campaign,
            added: members,
            already: 0,
            left_out_total: left_out.len() as u64,
            left_out,
            replicated: Replicated::NotApplicable,
        }
    }

    #[test]
    fn a_dry_run_of_several_calls_is_told_as_one() {
        let before = BTreeMap::from([("MMM".to_owned(), 2)]);
        let sum = with(None, started(10), true, &before);
        let sum = with(Some(sum), started(5), true, &before);
        assert_eq!(sum.by_label, BTreeMap::from([("MMM".to_owned(), 11)]));
        assert_eq!((sum.added, sum.left_out_total), (15, 4));
        let lines = lines(&sum);
        assert_eq!(lines[0], "15 meters would come in, 4 are left out");
        assert!(lines.contains(&"label MMM  11".to_owned()), "{lines:?}");
        assert!(lines.contains(&"left out  CODE_a  2".to_owned()), "{lines:?}");
        assert!(lines.contains(&"left out  b  CODE_b: why".to_owned()), "{lines:?}");
        assert_eq!(lines.last().unwrap(), "nothing was begun");
    }

    #[test]
    fn a_file_is_cut_into_calls_and_an_empty_one_is_no_selection() {
        let id = |number: usize| MeterId::new(&format!("m-{number}")).unwrap();
        let ids: Vec<MeterId> = (0..20_001).map(id).collect();
        let lots = in_lots(ids).unwrap();
        let lens: Vec<usize> = lots.iter().map(|lot| lot.meter_ids.len()).collect();
        assert_eq!(lens, [10_000, 10_000, 1]);
        assert!(in_lots(Vec::new()).is_err());
    }

    #[test]
    fn ids_stand_one_a_line_and_count_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\u{FEFF}m-2\r\n\n m-1 \nm-2\n").unwrap();
        let ids: Vec<String> =
            read_ids(file.path()).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(ids, ["m-2", "m-1"]);
        std::fs::write(file.path(), "m-1\nm 2\n").unwrap();
        assert!(read_ids(file.path()).is_err());
    }
}

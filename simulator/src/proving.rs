//! Proofs and `READY`: the site that writes asks, the other one answers, both learn what was reported, and a site that
//! nobody reports about opens its blocks for itself.

use std::rc::Rc;

use kms_core::{
    BlockNo, Head,
    block::{
        proof::{Challenge, Proof},
        verified::Verified,
    },
    moment::{Moment, Stamp},
    site::proving::{About, KnownReports, Outcome, Proofs, follows, may_ask},
};

use crate::{
    evidence::{ProofMessage, Say},
    fault::Fault,
    mutation::Mutation,
    proofs::{AGE_MAX, Answer, Asked, Job, Learned, NodeProofs, Nonces, Paper, Token, Told},
    realm::{BLOCKS, DOMAIN, block_count},
    site::{NODES, Node, Place, REPLICA, SITES},
    truth::Broken,
    world::World,
};

/// The wall clock at the beginning, so that it can be put back by years.
const BEGINNING_MS: i64 = 1 << 41;

/// Rounds in which a healed site is proved: clocks that were set back a little make reports look old for a while.
const ROUNDS: usize = 60;

const NAMES: [&str; SITES] = ["site 0", "site 1", "site 2"];

impl World<'_> {
    fn stamp(&self, place: Place) -> Stamp {
        let wall = BEGINNING_MS + self.ms as i64 + self.proving.skew[place.site][place.node];
        let moment = match self.is(Mutation::WallClockAlone) {
            true => Moment::default(),
            false => self.nodes[place.site][place.node].now(self.ms),
        };
        Stamp { unix_ms: wall.unsigned_abs(), moment }
    }

    /// A node of those that run and that this holds for, if there is one.
    fn any_prover(&mut self, holds: impl Fn(&Node) -> bool) -> Option<Place> {
        let is_one = |place: &Place| {
            let node = &self.nodes[place.site][place.node];
            node.runs() && holds(node)
        };
        let found: Vec<Place> = self.all_places().filter(is_one).collect();
        found.get(self.proving.chance.below(found.len())).copied()
    }

    /// Something that has to do with proofs, by chance.
    pub(crate) fn prove_any(&mut self) {
        match self.proving.chance.below(100) {
            0..35 => self.deliver_proof(),
            35..60 => {
                if let Some(place) = self.any_prover(|node| !node.proving.jobs.is_empty()) {
                    self.do_job(place);
                }
            }
            60..70 => {
                if let Some(place) = self.any_prover(|node| node.standing.writes()) {
                    self.ask_for_proofs(place);
                }
            }
            70..73 => {
                if let Some(place) = self.any_prover(|node| !node.standing.writes()) {
                    self.open_for_itself(place);
                }
            }
            73..76 => {
                if let Some(place) = self.any_prover(|_| true) {
                    self.load_papers(place);
                }
            }
            76..80 => self.replay_proof(),
            80..81 => self.break_token(),
            81..82 => {
                let site = self.proving.chance.below(SITES);
                self.proving.tokens[site] = Token::WELL;
            }
            _ => {}
        }
    }

    fn break_token(&mut self) {
        let site = self.proving.chance.below(SITES);
        // Until now it opened what it did.
        self.see_openings(site);
        let which = self.proving.chance.below(4);
        let token = &mut self.proving.tokens[site];
        let fault = match which {
            0 | 1 => {
                token.keks[which] = false;
                Fault::MissingKek
            }
            _ => {
                token.blocks[which % BLOCKS as usize] = false;
                Fault::ShutBlock
            }
        };
        self.hit(fault, site);
    }

    /// The wall clocks of a site jump: by years, by some time that a proof is good for, or to what is right.
    pub(crate) fn jump_wall(&mut self, site: usize) {
        let far = 1 << [40, 12, 0][self.proving.chance.below(3)];
        let skew = self.proving.chance.below(2 * far) as i64 - far as i64;
        self.proving.skew[site] = [if far == 1 { 0 } else { skew }; NODES];
    }

    /// A machine that was paused goes on. Somebody sets its wall clock, or nobody does.
    pub(crate) fn resume_wall(&mut self, place: Place) {
        let Place { site, node } = place;
        let paused = self.nodes[site][node].behind - self.proving.paused_at[site][node];
        if self.proving.chance.percent(50) {
            self.proving.skew[site][node] -= paused as i64;
        }
    }

    fn replay_proof(&mut self) {
        let count = self.proving.remembered.len();
        if count > 0 {
            let message = self.proving.remembered[self.proving.chance.below(count)].clone();
            self.hit(Fault::Replay, message.to.site);
            self.proving.net.push(message);
        }
    }

    fn deliver_proof(&mut self) {
        let count = self.proving.net.len();
        if count == 0 {
            return;
        }
        let chance = &mut self.proving.chance;
        let at = if chance.percent(75) { 0 } else { chance.below(count) };
        let (becomes, bit) = (chance.below(100), chance.below(1 << 14));
        let mut message = self.proving.net.remove(at);
        let site = message.to.site;
        match becomes {
            0..3 => return self.hit(Fault::Loss, site),
            3..10 => {
                self.hit(Fault::Duplication, site);
                self.proving.net.push(message.clone());
            }
            10..16 if message.tamper(bit) => self.hit(Fault::Tampering, site),
            _ if at > 0 => self.hit(Fault::Reordering, site),
            _ => {}
        }
        self.arrive(message);
    }

    fn arrive(&mut self, message: ProofMessage) {
        let cut = self.cut[message.from.site][message.to.site];
        let to = self.node(message.to);
        if !to.up || cut {
            return;
        }
        if !to.runs() {
            return self.proving.net.push(message);
        }
        let place = message.to;
        match message.say {
            Say::Ask(number, nonces) => {
                self.answer_proofs(message.from, place, message.card, (number, nonces))
            }
            Say::Answer(answer) => self.node(place).proving.jobs.push(Job::Judge(answer)),
            Say::Report(paper) => self.take_report(place, message.from.site, &paper),
        }
    }

    /// The site that writes asks for all blocks: a round.
    pub(crate) fn ask_for_proofs(&mut self, place: Place) {
        // It waits for an answer, and not for ever.
        if self.node(place).proving.open.is_some() && self.proving.chance.percent(80) {
            return;
        }
        let (card, stamp) = (self.card(place.site), self.stamp(place));
        if self.node(place).proving.open.take().is_some() {
            self.report(place, Some("no answer".to_owned()));
        }
        self.proving.numbers += 1;
        let (number, mut nonces) = (self.proving.numbers, Nonces::default());
        let words = nonces.iter_mut().flat_map(|nonce| nonce.chunks_exact_mut(8));
        words.for_each(|word| word.copy_from_slice(&self.proving.chance.bits().to_be_bytes()));
        let to = Place { site: 1 - place.site % 2, node: self.proving.chance.below(NODES) };
        let node = self.node(place);
        let behind = node.behind;
        let NodeProofs { proofs, open, .. } = &mut node.proving;
        proofs.stand(card.epoch);
        proofs.begin_round();
        *open = Some(Asked { number, question: proofs.question(stamp), card, nonces, behind });
        self.proving.post(ProofMessage { from: place, to, card, say: Say::Ask(number, nonces) });
    }

    /// The other site answers, each block from its database and its token.
    fn answer_proofs(
        &mut self,
        asker: Place,
        place: Place,
        card: kms_core::replication::following::PeerCard,
        (number, nonces): (u64, Nonces),
    ) {
        let ours = self.card(place.site);
        let passes = self.proving.tokens[place.site].passes() || self.is(Mutation::KekUnchecked);
        let refusal = match may_ask(ours, card) {
            Err(refusal) => Some(refusal.to_string()),
            Ok(()) if !passes => Some("the token did not pass its check".to_owned()),
            Ok(()) => None,
        };
        let prove = |block: usize| match &refusal {
            Some(refusal) => Err(refusal.clone()),
            None => {
                let (prover, verifier) = (NAMES[place.site], NAMES[asker.site]);
                let nonce = nonces[block];
                let challenge = Challenge { prover, verifier, nonce, epoch: card.epoch };
                self.prove_one(place.site, block, &challenge)
            }
        };
        let outcomes = (0..BLOCKS as usize).map(prove).collect();
        let answer = Answer { number, to: (asker.site, card.epoch, nonces), card: ours, outcomes };
        let say = Say::Answer(Box::new(answer));
        self.proving.post(ProofMessage { from: place, to: asker, card: ours, say });
    }

    fn prove_one(
        &self,
        site: usize,
        block: usize,
        challenge: &Challenge<'_>,
    ) -> Result<(Head, Proof), String> {
        let verified = self.opened(site, block).ok_or("the seal does not open")?;
        let proof = self.realm.proof_key(block).prove(challenge, &verified);
        Ok((verified.head().clone(), proof.map_err(|damaged| damaged.to_string())?))
    }

    /// A block as it is stored, if the site's token opens it.
    fn opened(&self, site: usize, block: usize) -> Option<Verified> {
        let state = &self.sites[site].blocks[block];
        let (head, records) = (state.head.clone(), state.records.clone());
        let opens = self.proving.tokens[site].blocks[block];
        opens.then(|| Verified::of_any_age(head, records, self.realm.keys(block)).ok())?
    }

    pub(crate) fn do_job(&mut self, place: Place) {
        let count = self.node(place).proving.jobs.len();
        let at = self.proving.chance.below(count);
        match self.node(place).proving.jobs.remove(at) {
            Job::Judge(answer) => self.judge(place, &answer),
            Job::Report(fault) => self.report(place, fault),
        }
    }

    fn judge(&mut self, place: Place, answer: &Answer) {
        let any = self.is(Mutation::ProofOfAnyQuestion);
        let stamp = self.stamp(place);
        let Some(asked) = self.node(place).proving.open.take() else { return };
        if asked.number != answer.number && !any {
            self.node(place).proving.open = Some(asked);
            return;
        }
        if !follows(asked.card, answer.card) {
            let fault = "it is not the one that follows".to_owned();
            return self.node(place).proving.jobs.push(Job::Report(Some(fault)));
        }
        let question = match self.is(Mutation::ProofAsOfItsAnswer) {
            true => self.node(place).proving.proofs.question(stamp),
            false => asked.question,
        };
        let (asker, epoch, nonces) = match any {
            true => answer.to,
            false => (place.site, asked.card.epoch, asked.nonces),
        };
        for (block, answered) in answer.outcomes.iter().enumerate() {
            let (prover, verifier) = (NAMES[1 - place.site % 2], NAMES[asker]);
            let challenge = Challenge { prover, verifier, nonce: nonces[block], epoch };
            let outcome = self.judge_one(place.site, block, &challenge, answered);
            let proving = &mut self.node(place).proving;
            if matches!(outcome, Outcome::Proved(_)) {
                proving.behind[block] = asked.behind;
            }
            proving.proofs.take(&question, BlockNo(block as u32), outcome);
        }
        self.node(place).proving.jobs.push(Job::Report(None));
    }

    fn judge_one(
        &self,
        site: usize,
        block: usize,
        challenge: &Challenge<'_>,
        answered: &Result<(Head, Proof), String>,
    ) -> Outcome {
        let (head, proof) = match answered {
            Ok((head, proof)) => (head, proof),
            Err(why) => return Outcome::Failed(why.clone()),
        };
        if head.block.0 as usize != block {
            let (position, digest) = (head.position, head.digest);
            return Outcome::Proved(kms_core::block::BlockMark {
                block: head.block,
                position,
                digest,
            });
        }
        match self.opened(site, block) {
            Some(ours) if ours.head() == head => {
                match self.realm.proof_key(block).confirms(challenge, head, proof) {
                    true => Outcome::Proved(ours.mark()),
                    false => Outcome::Failed("the proof is wrong".to_owned()),
                }
            }
            _ => Outcome::Nothing,
        }
    }

    /// The asker signs what came of a round, keeps it, and hands it to the site that it is about.
    fn report(&mut self, place: Place, fault: Option<String>) {
        let about = 1 - place.site % 2;
        let node = &self.nodes[place.site][place.node];
        let oldest = node.proving.behind.into_iter().min().unwrap_or(node.behind);
        let paused = node.behind.saturating_sub(oldest);
        let Some(paper) = self.paper(place, about, &node.proving.proofs, (paused, fault)) else {
            return;
        };
        self.learn_report(place, about, &paper);
        let to = Place { site: about, node: self.proving.chance.below(NODES) };
        let card = self.card(place.site);
        self.proving.post(ProofMessage { from: place, to, card, say: Say::Report(paper) });
    }

    fn paper(
        &self,
        place: Place,
        about: usize,
        proofs: &Proofs,
        (paused, fault): (u64, Option<String>),
    ) -> Option<Paper> {
        let [site, by] = [about, place.site].map(|site| NAMES[site].to_owned());
        let readiness = proofs.sum(self.stamp(place), fault);
        let report = readiness.report(About { domain: DOMAIN, site, by, differences: Vec::new() });
        let signed = Rc::new(self.realm.sign_readiness(place.site, report)?);
        let skew = self.proving.skew[place.site][place.node];
        Some(Paper { signed, told: Told { reported: self.ms, paused, skew } })
    }

    /// A report that the peer has signed about this site.
    fn take_report(&mut self, place: Place, from: usize, paper: &Paper) {
        let report = &paper.signed.report;
        let writers = &self.realm.writers[place.site];
        let key = if from == 0 { &writers.even } else { &writers.odd };
        let ahead = self.stamp(place).unix_ms.saturating_add(KnownReports::AHEAD_MAX_MS);
        let is_ours = report.site == NAMES[place.site] && report.by == NAMES[from];
        let is_signed = key.as_ref().is_some_and(|key| paper.signed.is_signed_by(key));
        if is_ours && is_signed && report.at_ms <= ahead {
            self.learn_report(place, place.site, paper);
        }
    }

    fn learn_report(&mut self, place: Place, about: usize, paper: &Paper) {
        let (stamp, ms, epoch) = (self.stamp(place), self.ms, self.sites[place.site].epoch);
        let node = self.node(place);
        let learned = Learned { told: paper.told, ms, behind: node.behind };
        node.proving.learn(about, paper, epoch, (stamp, learned));
        if paper.signed.report.is_complete() {
            let at = |paper: &Paper| (paper.signed.report.epoch, paper.signed.report.at_ms);
            let kept = &mut self.sites[place.site].papers[about];
            if kept.as_ref().is_none_or(|kept| at(kept) < at(paper)) {
                *kept = Some(paper.clone());
            }
        }
    }

    /// A node reads what other nodes of its site have kept.
    fn load_papers(&mut self, place: Place) {
        let papers = self.sites[place.site].papers.clone();
        for (about, paper) in papers.iter().enumerate() {
            if let Some(paper) = paper {
                self.learn_report(place, about, paper);
            }
        }
    }

    /// Nobody has reported for a while: the site opens all of its blocks.
    fn open_for_itself(&mut self, place: Place) {
        let (epoch, now) = (self.sites[place.site].epoch, self.stamp(place));
        let newest = self.node(place).proving.known[place.site].newest();
        let since = now.unix_ms.saturating_sub(AGE_MAX.as_millis() as u64 / 2);
        if newest.is_some_and(|it| it.report.epoch == epoch && it.report.at_ms >= since) {
            return;
        }
        let mut proofs = Proofs::new(block_count(), AGE_MAX);
        proofs.stand(epoch);
        proofs.begin_round();
        let question = proofs.question(now);
        let passes = self.proving.tokens[place.site].passes();
        for block in 0..BLOCKS as usize {
            let outcome = match self.opened(place.site, block).filter(|_| passes) {
                Some(opened) => Outcome::Proved(opened.mark()),
                None => Outcome::Failed("it does not open".to_owned()),
            };
            proofs.take(&question, BlockNo(block as u32), outcome);
        }
        if let Some(paper) = self.paper(place, place.site, &proofs, (0, None)) {
            self.learn_report(place, place.site, &paper);
        }
    }

    /// Of the site that follows, as this node sees it: whether it says that it is ready.
    fn says_ready(&self, place: Place) -> Option<usize> {
        let node = &self.nodes[place.site][place.node];
        let about = if node.standing.writes() { 1 - place.site % 2 } else { place.site };
        let known = &node.proving.known[about];
        let epoch = match self.is(Mutation::ReportOfAnyEpoch) {
            true => known.newest()?.report.epoch,
            false => node.standing.epoch,
        };
        known.ready((epoch, None), AGE_MAX, self.stamp(place)).ok().map(|()| about)
    }

    fn see_openings(&mut self, site: usize) {
        let token = self.proving.tokens[site];
        self.proving.openings.see(site, &self.sites[site], &token, self.ms);
    }

    /// Who says `READY` is held against what really opened.
    pub(crate) fn check_ready(&mut self) -> Result<(), Broken> {
        (0..SITES).for_each(|site| self.see_openings(site));
        for place in self.all_places() {
            if !self.node(place).runs() {
                continue;
            }
            if let Some(about) = self.says_ready(place) {
                self.proving.said += 1;
                self.is_ready(place, about)?;
            }
        }
        Ok(())
    }

    fn is_ready(&self, place: Place, about: usize) -> Result<(), Broken> {
        let node = &self.nodes[place.site][place.node];
        let (Some(learned), Some(newest)) =
            (node.proving.learned[about], node.proving.known[about].newest())
        else {
            return Err(Broken::of(11, format!("{place:?} says READY of site {about} by nothing")));
        };
        let by_itself = newest.report.by == NAMES[about];
        let last = self.proving.openings.last(about, (!by_itself).then_some(node.standing.epoch));
        let age_max = AGE_MAX.as_millis() as u64 + self.unseen_ms(place, &learned);
        if last.saturating_add(age_max) < self.ms {
            let what = format!(
                "{place:?} says READY of site {about} in epoch {}, which last opened all {} ms ago; {age_max} at most",
                node.standing.epoch.0,
                self.ms - last
            );
            return Err(Broken::of(11, what));
        }
        Ok(())
    }

    /// The time that no clock of the two machines has seen pass: the asker was paused, and wherever the wall clock here is
    /// behind the asker's, also while the report was under way and this machine was paused.
    fn unseen_ms(&self, place: Place, learned: &Learned) -> u64 {
        let Learned { told: Told { reported, paused, skew }, ms, behind } = *learned;
        let node = &self.nodes[place.site][place.node];
        let here = (ms - reported) + node.behind.saturating_sub(behind);
        let wall = skew - self.proving.skew[place.site][place.node];
        paused + here.min(u64::try_from(wall).unwrap_or(0))
    }

    /// All is healed: the site that follows is proved to be ready, and both know it.
    pub(crate) fn prove_in_the_end(&mut self) -> Result<(), Broken> {
        self.proving.tokens = [Token::WELL; SITES];
        self.proving.skew = [[0; NODES]; SITES];
        let Some(writer) = (0..REPLICA).find(|site| self.sites[*site].writes) else {
            return Ok(());
        };
        for _ in 0..ROUNDS {
            self.ms += 100;
            self.ask_for_proofs(Place { site: writer, node: 0 });
            while let Some(message) = self.proving.net.pop() {
                self.arrive(message);
            }
            for place in self.all_places() {
                while !self.node(place).proving.jobs.is_empty() {
                    self.do_job(place);
                }
            }
            self.check_ready()?;
            let says = |site: usize| {
                (0..NODES).any(|node| self.says_ready(Place { site, node }).is_some())
            };
            if says(writer) && says(1 - writer) {
                return Ok(());
            }
        }
        let what = format!("site {} is healed, and not proved to be ready", 1 - writer);
        Err(Broken::of(11, what))
    }
}

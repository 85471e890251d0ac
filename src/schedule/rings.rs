//! Whose turn it is: destinations with mail to send take turns, one attempt each, in one ring per standing.

use std::collections::VecDeque;

use super::slots::Standing;
use crate::smtp::address::Domain;

/// The rings. A destination may be in several when its standing changed; its owner knows which one counts.
#[derive(Debug, Default)]
pub struct Rings {
    rings: [VecDeque<Domain>; 3],
    turn: usize,
}

impl Rings {
    /// Puts a destination at the end of its ring.
    pub fn push(&mut self, standing: Standing, destination: Domain) {
        self.rings[standing as usize].push_back(destination);
    }

    /// Whether somebody of this standing waits.
    pub fn has(&self, standing: Standing) -> bool {
        !self.rings[standing as usize].is_empty()
    }

    /// The next destination that may take a slot, and the standing of the ring it was in: rings take turns, a ring
    /// whose standing finds no room is passed.
    pub fn pop(&mut self, has_room: impl Fn(Standing) -> bool) -> Option<(Standing, Domain)> {
        for step in 0..Standing::ALL.len() {
            let index = (self.turn + step) % Standing::ALL.len();
            if !self.rings[index].is_empty() && has_room(Standing::ALL[index]) {
                self.turn = (index + 1) % Standing::ALL.len();
                return self.rings[index].pop_front().map(|next| (Standing::ALL[index], next));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::slots::Slots;

    #[test]
    fn destinations_take_turns_and_a_full_class_does_not_stop_the_others() {
        let domain = |name: &str| Domain::parse(name).expect("good");
        let mut rings = Rings::default();
        let mut slots = Slots::new(4);
        slots.take(Standing::Troubled);
        slots.take(Standing::Troubled);
        for (standing, name) in [
            (Standing::Troubled, "dead.example"),
            (Standing::Proven, "a.example"),
            (Standing::Proven, "b.example"),
            (Standing::Unknown, "new.example"),
        ] {
            rings.push(standing, domain(name));
        }
        let order: Vec<_> = std::iter::from_fn(|| rings.pop(|standing| slots.has_room(standing)))
            .map(|(_, name)| name.to_string())
            .collect();
        assert_eq!(order, ["a.example", "new.example", "b.example"]);
    }
}

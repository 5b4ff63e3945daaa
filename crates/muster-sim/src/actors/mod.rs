//! The actors there are.

mod capture;
mod neighbours;
mod prune;
mod servers;

use crate::actor::Actor;
use crate::dice::Dice;

pub(crate) use capture::Capture;
pub(crate) use neighbours::Neighbours;
pub(crate) use prune::Prune;
pub(crate) use servers::Servers;

/// Draws who is there besides the operators. Neighbours always are.
pub(crate) fn draw(dice: &mut Dice) -> Vec<Box<dyn Actor>> {
    let mut actors: Vec<Box<dyn Actor>> = vec![Box::new(Neighbours)];
    if dice.chance(400_000) {
        actors.push(Box::new(Capture));
    }
    if dice.chance(300_000) {
        actors.push(Box::new(Prune::new(dice)));
    }
    if dice.chance(200_000) {
        actors.push(Box::new(Servers::new(dice)));
    }
    actors
}

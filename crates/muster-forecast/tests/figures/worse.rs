//! Fleets, by seed below 1,000, that come out worse than by plain list scheduling. They are kept: a change of the order that
//! makes another fleet worse, or one of these better, changes this list.

/// Makespan more than 2 % longer: mostly two tight pools that share steps (stage slots and requests), where demands of several
/// units leave units idle; and fleets whose largest sites stand at the end, as targets want it.
pub(crate) const LONGER: &[u64] = &[
    0, 11, 15, 18, 50, 58, 102, 134, 136, 148, 150, 190, 208, 210, 238, 277, 293, 301, 341, 348, 358, 359,
    361, 382, 386, 417, 464, 470, 495, 531, 565, 566, 600, 608, 609, 613, 632, 654, 681, 686, 699, 720, 723,
    724, 734, 738, 739, 752, 766, 796, 801, 828, 831, 840, 858, 878, 899, 917, 953, 964, 975, 976, 980, 996,
];

/// Mean recovery time longer: tight targets of large sites, which are put before many small ones; there are fewer late sites.
pub(crate) const MEAN_WORSE: &[u64] = &[
    14, 25, 30, 34, 71, 113, 130, 134, 150, 151, 176, 203, 206, 210, 211, 239, 254, 273, 285, 290, 310, 331,
    349, 373, 382, 394, 396, 417, 435, 441, 444, 474, 479, 484, 503, 507, 508, 539, 548, 561, 576, 583, 601,
    614, 623, 626, 633, 657, 659, 670, 702, 710, 761, 766, 768, 782, 792, 811, 818, 831, 834, 855, 863, 878,
    883, 884, 891, 900, 901, 903, 905, 939, 949, 950, 962, 980, 994,
];

/// More late sites.
pub(crate) const MORE_MISSES: &[u64] = &[331, 441, 561, 583, 831, 878];

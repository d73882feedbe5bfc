// How search results are ranked: the page of the name that was asked for comes first.
var Scorer = {
  score: (result) => {
    const [document, title, , , score] = result;
    const asked = (new URLSearchParams(location.search).get("q") || "").trim().toLowerCase();
    const page = document.toLowerCase();
    if (title.toLowerCase() !== asked) return score;
    if (page === `api/names/pvopt.${asked}`) return score + 200;
    return page.startsWith("api/names/") ? score + 100 : score;
  },
  // What follows is as Sphinx has it.
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};

// Classify images with an artifact folder on OpenVINO, in C++.
//
//     classify_openvino ARTIFACT IMAGE... [--file openvino-int8] [--threads N] [--json]
//
// All facts come from the folder's manifest.json. Reads JPEG and binary PPM. Prints image, class and probability,
// tab-separated, or one JSON object a line with all logits.
#include <algorithm>
#include <cmath>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <openvino/openvino.hpp>

#include "artifact.hpp"
#include "images.hpp"

using nlohmann::json;

namespace {

struct Arguments {
    std::string artifact, file;
    std::vector<std::string> images;
    int threads = 0;
    bool as_json = false;
};

int whole_number(const std::string& option, const std::string& text) {
    if (text.empty() || text.size() > 6 || text.find_first_not_of("0123456789") != std::string::npos)
        throw std::runtime_error(option + " " + text + " is not a whole number");
    return std::stoi(text);
}

Arguments parse(int count, char** words) {
    Arguments arguments;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        auto value = [&] {
            if (++i == count) throw std::runtime_error(word + " needs a value");
            return std::string(words[i]);
        };
        if (word == "--file") arguments.file = value();
        else if (word == "--threads") arguments.threads = whole_number(word, value());
        else if (word == "--json") arguments.as_json = true;
        else if (word.rfind("--", 0) == 0) throw std::runtime_error("unknown option " + word);
        else if (arguments.artifact.empty()) arguments.artifact = word;
        else arguments.images.push_back(word);
    }
    if (arguments.images.empty())
        throw std::runtime_error("usage: classify_openvino ARTIFACT IMAGE... [--file KEY] [--threads N] [--json]");
    return arguments;
}

Preprocessing facts_of(const json& manifest) {
    if (manifest.at("task") != "classification") throw std::runtime_error("the artifact is not a classifier");
    const json& given = manifest.at("preprocessing");
    const Preprocessing facts{given.at("image_size"), given.at("crop_pct"), given.at("interpolation") == "bicubic",
                              given.at("mean"), given.at("std")};
    const bool positive = std::all_of(facts.std.begin(), facts.std.end(), [](float value) { return value > 0; });
    const bool three = facts.mean.size() == 3 && facts.std.size() == 3;
    const bool fits = facts.image_size >= 1 && facts.image_size <= 16384 && facts.crop_pct >= 0.01 && facts.crop_pct <= 1;
    if (!three || !fits || !positive)
        throw std::runtime_error("the manifest's preprocessing makes no sense; export it again");
    return facts;
}

// Labels come from a file: no terminal control characters.
std::string printable(std::string text) {
    std::replace_if(text.begin(), text.end(), [](unsigned char c) { return c < 32 || c == 127; }, '?');
    return text;
}

std::vector<float> softmax(std::vector<float> logits) {
    const float largest = *std::max_element(logits.begin(), logits.end());
    float sum = 0;
    for (float& value : logits) sum += value = std::exp(value - largest);
    for (float& value : logits) value /= sum;
    return logits;
}

void classify(const Arguments& arguments) {
    const json manifest = read_manifest(arguments.artifact);
    const Preprocessing facts = facts_of(manifest);
    const std::vector<std::string> labels = manifest.at("labels");
    ov::AnyMap settings{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                        ov::hint::inference_precision(ov::element::f32)};
    if (arguments.threads > 0) settings.insert(ov::inference_num_threads(arguments.threads));
    ov::Core core;
    auto model = core.compile_model(checked_model(arguments.artifact, manifest, arguments.file), "CPU", settings);
    auto request = model.create_infer_request();
    const size_t size = static_cast<size_t>(facts.image_size);
    for (const auto& path : arguments.images) {
        auto tensor = preprocess(load_image(path), facts);
        request.set_input_tensor(ov::Tensor(ov::element::f32, {1, 3, size, size}, tensor.data()));
        request.infer();
        const auto output = request.get_output_tensor();
        const std::vector<float> logits(output.data<float>(), output.data<float>() + output.get_size());
        if (logits.size() != labels.size())
            throw std::runtime_error("the manifest has " + std::to_string(labels.size()) + " labels, the model " +
                                     std::to_string(logits.size()) + " outputs; export it again");
        const auto chances = softmax(logits);
        const size_t best = std::max_element(chances.begin(), chances.end()) - chances.begin();
        if (arguments.as_json)
            std::cout << json{{"image", path}, {"label", labels.at(best)}, {"probability", chances[best]}, {"logits", logits}}
                      << '\n';
        else
            std::cout << path << '\t' << printable(labels.at(best)) << '\t' << std::fixed << std::setprecision(4) << chances[best] << '\n';
    }
}

}  // namespace

int main(int count, char** words) {
    try {
        classify(parse(count, words));
        return 0;
    } catch (const json::exception& error) {
        std::cerr << "classify_openvino: manifest.json makes no sense: " << printable(error.what()) << '\n';
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "classify_openvino: " << printable(error.what()) << '\n';  // a parser's message may have many lines
        return 2;
    }
}
